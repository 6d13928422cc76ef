"""`python -m minillm_core RUN_DIR` in a terminal: what the person who started it gets to see."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minillm_core.__main__ import main
from minillm_core.by_hand import ToldEvents
from minillm_core.spec import ExitCode, Phase, parse_event
from tests.minillm_core.tiny_runs import ROOT, environment, events, of_type, run_program, write_run


def test_events_are_in_the_file_and_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ToldEvents(tmp_path, interval=0.0)
    told.phase(Phase.TRAINING, "minillm: 20 steps of 4 rows")
    told.phase(Phase.GENERATING)
    told.metrics(Phase.TRAINING, 5, {"loss": 1.25, "reverse_kl": 0.5, "grad_norm": 9.0})
    told.progress(
        Phase.TRAINING, step=5, total_steps=20, fraction=0.25, tokens_per_second=1234.5, seconds_left=60.0, force=True
    )
    told.message("info", "dataset", "38 rows to train on")
    told.message("warning", "checkpoint_damaged", "passed over")
    told.student(path="student", manifest_sha256="a" * 64, bytes=1, parameters=1, teacher_parameters=2,
                 report={"verdict": "It is that of step 4.",
                         "before": {"rouge_l": 20.0}, "after": {"rouge_l": 25.5}})  # fmt: skip
    told.close()
    assert capsys.readouterr().err.splitlines() == [
        "training: minillm: 20 steps of 4 rows",
        "training: step 5/20  25% of the job  loss 1.2500  reverse KL 0.5000  1,234 tokens/s  60 s left",
        "38 rows to train on",
        "warning: passed over",
        "It is that of step 4.",
        f"the student is in {tmp_path}/student, ROUGE-L 20.00 -> 25.50 on held-out rows",
    ]
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [parse_event(line).type for line in lines] == [
        "phase", "phase", "metrics", "progress", "message", "message", "student"
    ]  # fmt: skip


def test_steps_in_quick_succession_are_not_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ToldEvents(tmp_path, interval=60.0)
    for step in range(1, 4):
        told.phase(Phase.GENERATING, f"round {step}")
        told.progress(Phase.TRAINING, step=step, total_steps=3, fraction=step / 3, force=True)
    told.close()
    assert capsys.readouterr().err.splitlines() == ["generating: round 1", "training: step 1/3  33% of the job"]
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 6


def test_a_whole_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, method={"type": "sft"}, training={"max_steps": 2})
    done = subprocess.run(
        [sys.executable, "-m", "minillm_core", str(folder)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "rows to train on" in done.stderr
    assert f"the student is in {folder}/student" in done.stderr


def test_an_interrupt_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    steps = {"max_steps": 100_000, "save_every": 100_000, "eval_every": 100_000}
    folder = write_run(tmp_path, method={"type": "sft"}, training=steps)
    command = [sys.executable, "-m", "minillm_core", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "training: step" in line:
                break
        run.send_signal(signal.SIGINT)
        said = run.stderr.read()
        assert run.wait(60) == ExitCode.STOPPED, said
    assert "stopping with a checkpoint" in said
    (saved,) = of_type(events(folder), "checkpoint")
    write_run(folder, method={"type": "sft"}, training={**steps, "max_steps": saved["step"] + 1})
    code, found = run_program(folder)
    assert code == ExitCode.DONE
    assert [event["step"] for event in of_type(found, "metrics") if event["step"] > saved["step"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "spec.json: no such file or directory"),
        ("{", "/: Invalid JSON"),
        ('{"teacher": {"model": "gpt2"}}', "/teacher/model: a model is named hub:<id>"),
        ("{}", "/teacher: Field required"),
    ],
)
def test_what_is_no_spec_is_told_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_text(content)
    assert main([str(tmp_path)]) == ExitCode.USER_ERROR
    assert said in capsys.readouterr().err
