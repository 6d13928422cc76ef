"""Reading what a trainer writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from store.server_paths import ServerPaths
from store.settings import Settings
from worker.attempt import tail
from worker.attempt.tail import EventTail, attempt_log, last_events

PATHS = ServerPaths(Settings(data_dir=Path("/srv/data")))


def _line(seq: int) -> bytes:
    return json.dumps({"type": "phase", "seq": seq, "time": "", "phase": "training"}).encode() + b"\n"


def _seqs(events: EventTail) -> list[int]:
    return [event.seq for event in events.read()]


class TestEventTail:
    def test_gives_each_event_once_and_waits_for_the_end_of_a_line(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        events = EventTail(path, PATHS)
        assert _seqs(events) == []
        with path.open("ab", buffering=0) as file:
            file.write(_line(1) + _line(2)[:10])
            assert _seqs(events) == [1]
            assert _seqs(events) == []
            file.write(_line(2)[10:] + _line(3))
            assert _seqs(events) == [2, 3]

    def test_a_half_line_that_is_taken_back_costs_no_event(self, tmp_path: Path) -> None:
        """A disk that is full takes half of one, which the trainer removes again."""
        path = tmp_path / "events.jsonl"
        events = EventTail(path, PATHS)
        path.write_bytes(_line(1) + b'{"type":"message","seq":2,"ti')
        assert _seqs(events) == [1]
        os.truncate(path, len(_line(1)))
        assert _seqs(events) == []
        with path.open("ab") as file:
            file.write(_line(3)[:10])
        assert _seqs(events) == []
        with path.open("ab") as file:
            file.write(_line(3)[10:] + _line(4))
        assert _seqs(events) == [3, 4]
        assert events.malformed == 0

    def test_lines_that_are_no_events_are_counted_and_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        nan = b'{"type":"metrics","seq":9,"time":"","phase":"training","step":1,"values":{"loss":NaN}}\n'
        path.write_bytes(_line(1) + b"not json\n\n" + nan + b'{"type": "unheard of"}\n' + _line(2))
        events = EventTail(path, PATHS)
        assert _seqs(events) == [1, 2]
        assert events.malformed == 3

    def test_a_line_without_end_is_not_held_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tail, "LONGEST_EVENT_BYTES", 1000)
        path = tmp_path / "events.jsonl"
        events = EventTail(path, PATHS)
        with path.open("ab", buffering=0) as file:
            file.write(_line(1) + b"x" * 2000)
            assert _seqs(events) == [1]
            file.write(b"x" * 2000)
            assert _seqs(events) == []
            file.write(b"\n" + _line(2))
            assert _seqs(events) == [2]


class TestLastEvents:
    def test_gives_whole_lines_of_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        assert last_events(path, PATHS) == []
        lines = [_line(number) for number in range(1, 30)]
        path.write_bytes(b"".join(lines) + b'{"type": "mess')
        assert [event.seq for event in last_events(path, PATHS)] == list(range(1, 30))
        assert [event.seq for event in last_events(path, PATHS, limit_bytes=len(lines[-1]) + 30)] == [29]


class TestAttemptLog:
    def test_shows_the_ends_of_both_outputs(self, tmp_path: Path) -> None:
        (tmp_path / "stdout.log").write_text("out\n")
        (tmp_path / "stderr.log").write_bytes(b"\x1b[31mred\x1b[0m \xff\n")
        assert attempt_log(tmp_path, PATHS) == "==> stdout <==\nout\n==> stderr <==\nred \ufffd\n"

    def test_is_limited_and_reaches_into_the_file_rotated_out(self, tmp_path: Path) -> None:
        (tmp_path / "stderr.log.1").write_text("".join(f"old {n}\n" for n in range(10_000)))
        (tmp_path / "stderr.log").write_text("new\n")
        log = attempt_log(tmp_path, PATHS, 1000)
        assert log.endswith("old 9999\nnew\n")
        assert 300 < len(log.encode()) <= 1000
        assert log.splitlines()[1].startswith("old ")

    @pytest.mark.parametrize(("out", "err"), [(0, 90_000), (90_000, 0), (2_000, 90_000), (90_000, 2_000)])
    def test_what_one_output_leaves_is_the_others(self, tmp_path: Path, out: int, err: int) -> None:
        for name, size in (("stdout", out), ("stderr", err)):
            (tmp_path / f"{name}.log").write_text("".join(f"{n:06d}\n" for n in range(size // 7)))
        log = attempt_log(tmp_path, PATHS)
        assert 65_000 < len(log.encode()) <= 65_536
        assert log.count("\n000000\n") == sum(0 < size <= 2_000 for size in (out, err)), "the shorter one is whole"

    def test_is_empty_without_output(self, tmp_path: Path) -> None:
        assert attempt_log(tmp_path, PATHS) == ""


def test_no_folder_of_the_server_is_passed_on(tmp_path: Path) -> None:
    said = {"type": "message", "seq": 1, "time": "", "code": "x", "message": "no /srv/data/models/a"}
    (tmp_path / "events.jsonl").write_bytes(json.dumps(said).encode() + b"\n")
    (event,) = EventTail(tmp_path / "events.jsonl", PATHS).read()
    assert last_events(tmp_path / "events.jsonl", PATHS) == [event]
    assert "/srv" not in event.model_dump_json()
    (tmp_path / "stderr.log").write_text("no /srv/data/models/a\n")
    assert attempt_log(tmp_path, PATHS) == "==> stderr <==\nno a\n"
