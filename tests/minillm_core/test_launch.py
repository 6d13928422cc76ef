"""What is known of a run after one of its ranks has failed: real processes, started by the launcher."""

from __future__ import annotations

import signal
import textwrap

import pytest

from minillm_core.failures import as_fault
from minillm_core.launch import launch_ranks
from minillm_core.rank_failures import RANK_LOST, leave_failure, left_failure
from minillm_core.spec import Failure, FailureCategory
from tests.minillm_core.tiny_runs import ROOT, events, of_type, write_run

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
import minillm_core.run
from minillm_core.__main__ import main
from minillm_core.errors import UserError

def run_job(job, context, run_dir, ranks, events, stop):
    events.message("info", "here", "under way")
    if ranks.rank == 1:
        {fault}
    ranks.barrier()

minillm_core.run.run_job = run_job
os._exit(main())
"""


@pytest.fixture(autouse=True)
def _same_signal_handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def launch(folder, monkeypatch, fault: str) -> tuple[int, list]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RANK", raising=False)
    write_run(folder, resources={"gpus": 2})
    program = folder / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(root=str(ROOT), fault=fault))
    return launch_ranks(folder, 2, (str(program),)), events(folder)


def test_the_failure_of_another_rank_is_in_the_events(tmp_path, monkeypatch):
    code, found = launch(tmp_path, monkeypatch, 'raise ValueError("rank one is out of order")')
    failures = [event["failure"] for event in of_type(found, "failure")]
    assert code == 70
    assert len(failures) == 1
    assert failures[0]["code"] == "internal_error" and "rank one is out of order" in failures[0]["message"]
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))


def test_so_is_the_users_error_that_only_another_rank_saw(tmp_path, monkeypatch):
    fault = 'raise UserError("model_not_found", "no such folder on this node", param="/teacher/model")'
    _, found = launch(tmp_path, monkeypatch, fault)
    (failure,) = [event["failure"] for event in of_type(found, "failure")]
    assert (failure["code"], failure["param"]) == ("model_not_found", "/teacher/model")


def test_a_rank_killed_by_a_signal_is_told_by_the_exit_code_alone(tmp_path, monkeypatch):
    code, found = launch(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    assert code == 128 + signal.SIGKILL
    assert not of_type(found, "failure")


class TestLeftFailure:
    def failure(self, code: str) -> Failure:
        return Failure(code=code, category=FailureCategory.SYSTEM, message="m")

    def test_the_oldest_that_names_a_cause(self, tmp_path):
        assert left_failure(tmp_path) is None
        for rank, code in ((3, RANK_LOST), (1, "out_of_memory"), (2, "internal_error")):
            leave_failure(tmp_path, rank, self.failure(code))
        found = left_failure(tmp_path)
        assert found is not None and found.code == "out_of_memory"

    def test_a_damaged_file_is_passed_over(self, tmp_path):
        (tmp_path / "failure-1.json").write_text("{")
        leave_failure(tmp_path, 2, self.failure(RANK_LOST))
        found = left_failure(tmp_path)
        assert found is not None and found.code == RANK_LOST


def test_a_broken_collective_is_not_the_cause():
    text = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242"
    assert as_fault(RuntimeError(text)).code == RANK_LOST
    assert as_fault(RuntimeError("shapes differ")).code == "internal_error"
