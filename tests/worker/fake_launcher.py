"""A launcher whose trainer is tests/worker/fake_trainer.py; run as a program, a whole worker with it."""

from __future__ import annotations

import sys
from pathlib import Path

from store.program import begin
from worker.__main__ import run_worker
from worker.process.group import ProcessGroup

TRAINER = Path(__file__).with_name("fake_trainer.py")


class FakeLauncher:
    """Starts the tests' own trainer."""

    def launch(self, run_dir: Path, *, ranks: int, attempt_id: str, deadline: float) -> ProcessGroup:
        return ProcessGroup.start(
            [sys.executable, "-S", str(TRAINER), str(run_dir)],
            run_dir=run_dir,
            attempt_id=attempt_id,
            deadline=deadline,
        )


if __name__ == "__main__":
    sys.exit(run_worker(begin("worker"), FakeLauncher()))
