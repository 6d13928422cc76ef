"""Logs that are cut while their writer has them open."""

from __future__ import annotations

from pathlib import Path

from worker.process.rotate import rotate


class TestRotate:
    def test_keeps_the_end_and_empties_the_file_that_is_open(self, tmp_path: Path) -> None:
        log = tmp_path / "stdout.log"
        with log.open("ab", buffering=0) as writer:
            writer.write(b"a" * 50 + b"b" * 100)
            assert rotate(log, 100)
            writer.write(b"c")
        assert log.read_bytes() == b"c"
        assert (tmp_path / "stdout.log.1").read_bytes() == b"b" * 100
        assert not rotate(log, 100)
