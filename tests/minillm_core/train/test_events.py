import json
import math
import resource
from pathlib import Path

import pytest

from minillm_core.spec import Failure, FailureCategory, Phase, parse_event
from minillm_core.spec.event_lines import LONGEST_LINE_BYTES
from minillm_core.train.events import EventLog


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_every_event_parses(tmp_path):
    log = EventLog(tmp_path)
    log.phase(Phase.TRAINING, "go")
    log.metrics(Phase.TRAINING, 1, {"loss": 1.5})
    log.progress(Phase.TRAINING, step=1, total_steps=2, fraction=0.5, tokens_per_second=10.0)
    log.checkpoint(
        Phase.TRAINING, 1, path="c", bytes_=3, manifest_sha256="ab", best=True, resumable=True, metrics={"x": 1.0}
    )
    log.checkpoint_removed("c")
    log.message("warning", "guard_length", "short", step=3)
    log.student(path="student", manifest_sha256="ab", bytes=1, parameters=2, teacher_parameters=3, report={"steps": 1})
    log.close()
    events = [parse_event(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert [event.seq for event in events] == list(range(1, 8))


def test_numbers_without_json_are_left_out(tmp_path):
    log = EventLog(tmp_path)
    log.metrics(Phase.TRAINING, 1, {"loss": math.nan, "other": math.inf, "fine": 2.0})
    log.checkpoint(
        Phase.TRAINING,
        1,
        path="c",
        bytes_=3,
        manifest_sha256="ab",
        best=False,
        resumable=False,
        metrics={"rollout_reward": math.nan, "rollout_reverse_kl": math.inf, "fine": 2.0},
    )
    found = [parse_event(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert found[0].values == found[1].metrics == {"fine": 2.0}


def test_progress_is_written_at_most_once_a_second(tmp_path):
    log = EventLog(tmp_path)
    for step in range(5):
        log.progress(Phase.TRAINING, step=step, total_steps=5, fraction=0.0)
    log.progress(Phase.TRAINING, step=5, total_steps=5, fraction=1.0, force=True)
    assert [event["step"] for event in lines(tmp_path)] == [0, 5]


def test_numbering_goes_on_after_a_crash_in_the_middle_of_a_line(tmp_path):
    log = EventLog(tmp_path)
    log.phase(Phase.TRAINING)
    log.phase(Phase.EVALUATING)
    log.close()
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"seq": 3, "ty')
    EventLog(tmp_path).phase(Phase.EXPORTING)
    whole = path.read_text().splitlines()
    assert json.loads(whole[-1])["seq"] == 3 and json.loads(whole[-1])["phase"] == "exporting"


def test_other_ranks_write_nothing(tmp_path):
    EventLog(tmp_path, enabled=False).phase(Phase.TRAINING)
    assert not (tmp_path / "events.jsonl").exists()


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.phase(Phase.TRAINING)
    path = tmp_path / "events.jsonl"
    before = path.read_bytes()
    # A file that may not grow takes what still fits, as a disk that is full does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            log.phase(Phase.EXPORTING)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    log.phase(Phase.EXPORTING)
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2]


class TestLongEvents:
    """No line is longer than its limit, whatever is in it, and every line is an event."""

    @pytest.mark.parametrize(
        "report",
        [
            {"samples": [{"prompt": "語" * 70_000, "reference": "x"}] * 100},
            {"samples": [{"reference": "\x00" * 3_000_000}]},
            {"details": {"after": {"curve": [0.123456789] * 1_000_000}}},
            {"details": {f"name {index}": "x" * 100 for index in range(100_000)}},
        ],
    )
    def test_of_a_student(self, tmp_path, report):
        log = EventLog(tmp_path)
        digest = "ab" * 32
        fields = {"path": "student", "manifest_sha256": digest, "bytes": 1, "parameters": 2, "teacher_parameters": 3}
        log.student(**fields, report={"verdict": "It is that of step 3.", **report})
        log.close()
        (line,) = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
        assert len(line) <= LONGEST_LINE_BYTES
        event = parse_event(line)
        assert (event.type, event.manifest_sha256) == ("student", digest)
        assert next(iter(event.report.items())) == ("verdict", "It is that of step 3.")

    def test_of_a_failure_and_a_message(self, tmp_path):
        log = EventLog(tmp_path)
        log.message("error", "code", "x" * 3_000_000, rows=["y" * 1000] * 3000, half="\ud800")
        failure = Failure(code="dataset_invalid", category=FailureCategory.USER, message="z" * 5_000_000)
        log.failure(failure)
        log.close()
        for line in (tmp_path / "events.jsonl").read_bytes().splitlines():
            assert len(line) < LONGEST_LINE_BYTES and parse_event(line)

    def test_what_fits_is_as_it_was(self, tmp_path):
        log = EventLog(tmp_path)
        log.message("info", "code", "x" * 100_000)
        log.close()
        assert parse_event((tmp_path / "events.jsonl").read_bytes()).message == "x" * 100_000
