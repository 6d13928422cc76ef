"""The service as users run it, with the real trainer on tiny models: what only shows once a job runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from minillm import Client
from minillm.demo import TEACHER_FOLDER
from minillm.embedded import EmbeddedService
from minillm.types import Job
from store.db import tables
from store.db.database import Database
from tests import services
from tests.minillm_core.tiny_runs import ROOT, merge, tiny_spec
from tests.tiny_models import write_tiny_dataset, write_tiny_model
from worker.process.identity import ATTEMPT_VARIABLE

PATIENCE = 200.0
ENDLESS = {"max_steps": 1_000_000, "eval_every": 1_000_000, "save_every": 10}


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def trainers(mark: str) -> list[psutil.Process]:
    """Living processes of an attempt with `mark` in their command: its guardian and its ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            if ATTEMPT_VARIABLE in process.environ() and mark in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of an embedded service with a tiny teacher, and no hub where it looks for one."""
    folder = tmp_path_factory.mktemp("whole")
    write_tiny_model(folder / "models" / "teacher", layers=4, scale=4.0)
    there = environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(folder / "hub"), MINILLM_RETRY_BASE_SECONDS="0.5")
    service = EmbeddedService(folder, port=0, environment=there, log=folder / "service.log")
    try:
        service.start()
        with Client(service.ready(timeout=PATIENCE), api_key="") as client:
            services.USED.update(("sqlite", "valkey"))
            yield client
    finally:
        service.stop(at_once=True)


@pytest.fixture
def submit(client: Client, tmp_path: Path) -> Callable[..., Job]:
    def make(**changes: Any) -> Job:
        file = client.upload_file(write_tiny_dataset(tmp_path / "rows.jsonl"))
        return client.create_job(merge(tiny_spec(**changes), {"dataset": {"file": file.id}}))

    return make


def test_prompts_that_are_all_too_long_are_the_users_error(client: Client, submit: Callable[..., Job]) -> None:
    job = client.wait(submit(training={"max_prompt_tokens": 4}).id, timeout=PATIENCE)
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.failure is not None
    assert (job.failure.category, job.failure.code) == ("user", "dataset_invalid")
    assert job.failure.param == "/training/max_prompt_tokens"
    assert "every prompt is longer than max_prompt_tokens (4): the shortest" in job.failure.message


def test_a_hub_that_does_not_answer_fails_the_job_and_hangs_nothing(client: Client, submit: Callable[..., Job]) -> None:
    begin = time.monotonic()
    job = client.wait(submit(teacher={"model": "hub:nobody/nothing"}).id, timeout=PATIENCE)
    assert time.monotonic() - begin < 100
    assert job.state == "failed" and job.failure is not None
    assert (job.failure.category, job.failure.code) == ("user", "model_unavailable")
    assert job.failure.param == "/teacher/model"
    assert "hub:nobody/nothing is not on this machine and the hub does not answer" in job.failure.message


def test_a_trainer_that_is_killed_is_tried_again_and_leaves_nothing(client: Client, submit: Callable[..., Job]) -> None:
    job = submit(method={"type": "sft"}, training=ENDLESS)
    until(lambda: bool(client.checkpoints(job.id)), "no checkpoint")
    first = trainers(job.id)
    (rank,) = [process for process in first if process.cmdline()[1:3] == ["-m", "minillm_core"]]
    rank.kill()
    killed_at = time.monotonic()
    until(lambda: client.job(job.id).attempt == 2, "not claimed again")
    assert time.monotonic() - killed_at < 30, "longer than the lease"
    lost = client.attempts(job.id)[0]
    assert (lost.state, lost.signal) == ("failed", signal.SIGKILL)
    assert lost.failure is not None and (lost.failure.code, lost.failure.category) == (
        "trainer_killed",
        "infrastructure",
    )
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in first)
    kept = client.checkpoints(job.id)[0].step
    until(lambda: client.job(job.id).progress.step > kept and client.job(job.id).phase == "training", "no progress")
    assert min(point.step for point in client.metrics(job.id) if point.attempt == 2) > 1, "it began afresh"
    client.cancel(job.id, keep="none")
    assert client.wait(job.id, timeout=PATIENCE).state == "cancelled"
    assert trainers(job.id) == []


class TestDemo:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """A data folder in which the demo finds its teacher made already: a tiny one."""
        write_tiny_model(tmp_path / "data" / "models" / TEACHER_FOLDER, layers=4, scale=4.0)
        write_tiny_dataset(tmp_path / "rows.jsonl", rows=80)
        return tmp_path / "data"

    def start(self, data: Path, **changes: Any) -> subprocess.Popen[str]:
        spec = tiny_spec(name="demo", teacher={"model": f"path:{TEACHER_FOLDER}"}, dataset={"file": "rows.jsonl"})
        (data.parent / "spec.yaml").write_text(json.dumps(merge(spec, changes)))
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "minillm",
                "demo",
                "--data-dir",
                str(data),
                "--spec",
                str(data.parent / "spec.yaml"),
            ],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def test_ctrl_c_leaves_no_process_and_the_next_one_comes_to_its_end(self, data: Path) -> None:
        with self.start(data, method={"type": "sft"}, training=ENDLESS) as demo:
            assert demo.stdout is not None
            output = ""
            while not re.search(r"training.*step [1-9]", output):
                line = demo.stdout.readline()
                assert line, f"it ended before it trained:\n{output}"
                output += line
            family = psutil.Process(demo.pid).children(recursive=True)
            assert len(family) >= 7  # the service, Valkey, API, worker and its guardian, trainer, sweeper
            os.killpg(demo.pid, signal.SIGINT)
            demo.stdout.read()
            assert demo.wait(60) == 130
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

        sft = {"max_steps": 60, "rows_per_step": 8, "learning_rate": 1e-2}
        with self.start(data, training={"student_sft": sft, "max_steps": 2, "eval_every": 2}) as demo:
            output = demo.communicate(timeout=PATIENCE)[0]
        assert demo.returncode == 0, output
        summary = json.loads(output.splitlines()[-1])
        assert summary["state"] == "succeeded"
        assert summary["rouge_l_after"] > summary["rouge_l_before"]
        assert summary["student_parameters"] < summary["teacher_parameters"]
        assert (summary["steps"], Path(summary["student_path"]).is_dir()) == (2, True)
        assert "before  " in output and "after  " in output
        folders = [data / name for name in ("runs", "files", "logs", "valkey")]
        made = [data, *folders, *(path for folder in folders for path in folder.rglob("*")), *data.glob("minillm.db*")]
        assert {"student", "checkpoints", "stderr.log", "minillm.db"} <= {path.name for path in made}
        assert [str(path) for path in made if path.lstat().st_mode & 0o077 and not path.is_symlink()] == []
        database = Database(f"sqlite:///{data}/minillm.db")
        with database.read() as session:
            ends = {job.id: job.state for job in session.scalars(select(tables.Job))}
        database.dispose()
        assert ends.pop(summary["job"]) == "succeeded" and set(ends.values()) <= {"cancelling", "cancelled"}
