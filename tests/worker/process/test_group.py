"""The trainer's processes: clean start, gentle stop, sure end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.db.ids import new_id
from worker.process.group import ProcessGroup
from worker.process.guardian import boot_time
from worker.process.identity import attempt_processes, kill_attempt

TRAINER = Path(__file__).parents[2] / "fixtures" / "fake_trainer.py"


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ProcessGroup]]:
    groups: list[ProcessGroup] = []

    def starter(seconds: float = 30.0, **metadata: str) -> ProcessGroup:
        (tmp_path / "spec.json").write_text(json.dumps({"metadata": metadata}))
        group = ProcessGroup.start(
            [sys.executable, "-S", str(TRAINER), str(tmp_path)],
            run_dir=tmp_path,
            attempt_id=new_id("att"),
            deadline=boot_time() + seconds,
        )
        groups.append(group)
        return group

    yield starter
    for group in groups:
        assert group.kill() == []


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Callable[[str], ProcessGroup]]:
    """Starts a line of Python in the place of a trainer."""
    groups: list[ProcessGroup] = []

    def starter(code: str) -> ProcessGroup:
        command = [sys.executable, "-S", "-c", code]
        group = ProcessGroup.start(command, run_dir=tmp_path, attempt_id=new_id("att"), deadline=boot_time() + 60)
        groups.append(group)
        return group

    yield starter
    for group in groups:
        assert group.kill() == []


def alive(group: ProcessGroup) -> int:
    return len(attempt_processes([group.attempt_id]).get(group.attempt_id, []))


class TestEnvironment:
    def test_what_the_trainer_sees(
        self, start: Callable[..., ProcessGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MINILLM_BROKER_URL", "canary")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
        assert start(steps="0").wait(10) == 0
        seen = json.loads((tmp_path / "environment.json").read_text())
        assert "canary" not in seen.values()
        assert {name for name in seen if name.startswith("MINILLM_")} == {"MINILLM_ATTEMPT", "MINILLM_LIFELINE_FD"}


class TestExitStatus:
    @pytest.mark.parametrize(
        ("mode", "status"), [("succeed", 0), ("crash", 70), ("user_error", 64), ("kill", -signal.SIGKILL)]
    )
    def test_is_the_trainers_own(self, start: Callable[..., ProcessGroup], mode: str, status: int) -> None:
        assert start(mode=mode).wait(10) == status

    def test_sigterm_reaches_the_trainer(self, start: Callable[..., ProcessGroup], tmp_path: Path) -> None:
        group = start(steps="1000", delay="0.05")
        wait_until((tmp_path / "events.jsonl").exists)
        group.request_stop()
        assert group.wait(10) == 75
        assert alive(group) == 0


class TestEnd:
    @pytest.mark.parametrize("mode", ["stubborn", "escape"])
    def test_kill_takes_grandchildren_that_ignore_sigterm(self, start: Callable[..., ProcessGroup], mode: str) -> None:
        group = start(mode=mode, steps="1000", delay="0.05")
        wait_until(lambda: alive(group) == 5)
        group.request_stop()
        assert group.wait(0.3) is None
        assert group.kill() == []
        assert group.poll() is not None

    def test_leftovers_of_an_ended_trainer_are_killed(self, start: Callable[..., ProcessGroup]) -> None:
        group = start(mode="escape", steps="1")
        assert group.wait(10) == 0
        assert alive(group) == 0

    def test_the_deadline_ends_a_trainer_whose_supervisor_sleeps(self, start: Callable[..., ProcessGroup]) -> None:
        group = start(mode="stubborn", steps="1000", delay="0.05", seconds=1.0)
        assert group.wait(10) == -signal.SIGKILL
        assert alive(group) == 0

    def test_what_comes_too_late_is_not_even_started(self, tmp_path: Path) -> None:
        """A worker that slept between its claim and its start: another one may train by now."""
        for _ in range(5):
            group = ProcessGroup.start(
                ["/bin/sh", "-c", "echo started > proof"],
                run_dir=tmp_path,
                attempt_id=new_id("att"),
                deadline=boot_time() - 1.0,
            )
            assert group.wait(10) == -signal.SIGKILL
            assert group.kill() == []
        assert not (tmp_path / "proof").exists()

    def test_a_renewed_deadline_lets_it_live(self, start: Callable[..., ProcessGroup]) -> None:
        group = start(steps="1000", delay="0.05", seconds=0.6)
        group.extend(boot_time() + 30.0)
        assert group.wait(1.0) is None

    @pytest.mark.parametrize("victim", ["supervisor", "guardian"])
    def test_nothing_outlives_sigkill(self, tmp_path: Path, victim: str) -> None:
        (tmp_path / "spec.json").write_text(json.dumps({"metadata": {"mode": "succeed", "steps": "1000"}}))
        attempt_id = new_id("att")
        code = (
            "import sys,time; from pathlib import Path; from worker.process.group import ProcessGroup, boot_time\n"
            f"g = ProcessGroup.start([sys.executable, '-S', {str(TRAINER)!r}, {str(tmp_path)!r}],"
            f" run_dir=Path({str(tmp_path)!r}), attempt_id={attempt_id!r}, deadline=boot_time() + 60)\n"
            "print(g.identity.pid, flush=True); time.sleep(60)\n"
        )
        supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            assert supervisor.stdout is not None
            guardian = int(supervisor.stdout.readline())
            wait_until((tmp_path / "events.jsonl").exists)
            os.kill(supervisor.pid if victim == "supervisor" else guardian, signal.SIGKILL)
            wait_until(lambda: attempt_processes([attempt_id]) == {}, 5.0)
        finally:
            supervisor.kill()
            supervisor.wait()
            assert supervisor.stdout is not None
            supervisor.stdout.close()
            assert kill_attempt(attempt_id) == []

    def test_a_trainer_that_watches_nothing_dies_with_its_guardian(
        self, bare: Callable[[str], ProcessGroup], tmp_path: Path
    ) -> None:
        """The kernel ends it, though its supervisor sleeps: as long as the lease, nobody else would."""
        group = bare("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.kill(group.identity.pid, signal.SIGKILL)
        wait_until(lambda: alive(group) == 0, 2.0)

    def test_what_outlived_its_guardian_is_found_by_the_attempts_name(self, start: Callable[..., ProcessGroup]) -> None:
        group = start(mode="escape", steps="1000", delay="0.05")
        wait_until(lambda: alive(group) == 5)
        os.kill(group.identity.pid, signal.SIGKILL)
        wait_until(lambda: group.poll() is not None)
        assert alive(group) >= 3, "sessions of their own, and deaf to SIGTERM"
        assert group.kill() == []
        assert alive(group) == 0
