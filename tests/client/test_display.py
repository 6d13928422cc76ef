"""What `watch` shows: one line per change without a terminal, one live picture on it."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from minillm.display import duration, follow, table
from minillm.types import Job


def job(state: str = "running", **fields: Any) -> Job:
    return Job.model_validate({"id": "job_1", "state": state, **fields})


def running(step: int) -> Job:
    return job(
        phase="training",
        attempt=1,
        progress={
            "step": step,
            "total_steps": 20,
            "fraction": step / 20,
            "tokens_per_second": 1234.5,
            "seconds_left": 95,
        },
        metrics={"loss": 1.5, "reverse_kl": 0.25, "rouge_l": 31.4159, "learning_rate": 1e-5},
    )


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestPlain:
    def test_one_line_per_change(self) -> None:
        console = plain()
        states = [job("queued", queue_position=2), running(5), running(5), running(6), job("succeeded", report={})]
        assert follow(iter(states), console).state == "succeeded"
        lines = text(console).splitlines()
        assert len(lines) == 4
        assert re.fullmatch(r"\d\d:\d\d:\d\d  job_1  queued \(number 2 in the queue\)", lines[0])
        assert lines[1][10:] == (
            "job_1  running  training  step 5/20  25%  loss 1.5000  reverse KL 0.2500  ROUGE-L 31.42  "
            "tokens/s 1,234  left 1m35s"
        )

    def test_no_control_characters(self) -> None:
        console = plain()
        failure = {
            "code": "dataset_invalid",
            "category": "user",
            "message": "row \x1b[2J\x07 bad\nindeed",
            "param": "/dataset",
        }
        follow([job("failed", name="\x1b]0;x\x07", failure=failure)], console)
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", text(console)) is None
        assert text(console).splitlines()[1].startswith("dataset_invalid (user) at /dataset: row ")
        assert len(text(console).splitlines()) == 2

    def test_markup_is_text(self) -> None:
        console = plain()
        follow([job("[red]odd[/red]")], console)
        assert "[red]odd[/red]" in text(console)

    def test_tables_are_tab_separated(self) -> None:
        console = plain()
        table(console, ("A", "B"), [("x\ty", None), (1, "\x1b[1m")])
        assert text(console) == "A\tB\nx y\t\n1\t�[1m\n"


def test_an_id_is_whole_on_a_narrow_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    job_id = "job_01m89kbh3gecx52nkvjk82a4mm"
    table(console, ("ID", "NAME", "CREATED"), [(job_id, "a name of some length", datetime(2026, 3, 4, tzinfo=UTC))])
    assert job_id in text(console)


def test_times_in_tables() -> None:
    when = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    lines = plain()
    table(lines, ("CREATED",), [(when,)])
    assert text(lines) == "CREATED\n2026-03-04T05:06:07+00:00\n"
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    table(terminal, ("CREATED",), [(when,)])
    assert f"{when.astimezone():%m-%d %H:%M}" in text(terminal)


class TestLive:
    def test_one_picture_that_ends_with_the_last_state(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
        follow([running(5), job("succeeded", progress={"step": 20, "total_steps": 20, "fraction": 1.0})], console)
        last = text(console)
        for shown in ("training", "step 5/20", "reverse KL", "0.2500", "1,234", "1m35s", "succeeded", "100%"):
            assert shown in last

    def test_nothing_to_follow(self) -> None:
        with pytest.raises(ValueError, match="no job"):
            follow([], plain())


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (-1, "0s")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
