"""What the demo decides by itself; the whole of it runs in `make demo`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minillm import MinillmError
from minillm.demo import outcome, question, succeeded, summarise
from minillm.embedded import EmbeddedService, run_subprocess
from minillm.types import Job

REPORT = {
    "before": {"rouge_l": 20.0},
    "after": {"rouge_l": 25.0},
    "steps": 24,
    "train_seconds": 101.5,
    "student_parameters": 64,
    "teacher_parameters": 135,
}


def summary(state: str = "succeeded", **report: Any) -> dict[str, Any]:
    return summarise(Job(id="job_1", state=state, report={**REPORT, **report}), Path("/students/job_1"))


class TestSummary:
    def test_it_has_what_was_promised(self) -> None:
        assert summary() == {
            "job": "job_1",
            "state": "succeeded",
            "student_path": "/students/job_1",
            "student_parameters": 64,
            "teacher_parameters": 135,
            "rouge_l_before": 20.0,
            "rouge_l_after": 25.0,
            "steps": 24,
            "train_seconds": 101.5,
        }

    @pytest.mark.parametrize(
        ("made", "expected"),
        [
            (summary(), True),
            (summary(after={"rouge_l": 20.0}), False),
            (summary(after={"rouge_l": 19.0}), False),
            (summary(after={}), False),
            (summary(before=None), False),
            (summary("failed"), False),
            (summarise(Job(id="job_1", state="cancelled"), None), False),
        ],
    )
    def test_success_is_a_higher_score(self, made: dict[str, Any], expected: bool) -> None:
        assert succeeded(made) is expected

    def test_the_outcome_says_why(self) -> None:
        assert "rose: 20.00 -> 25.00" in outcome(summary())
        assert "did not rise: 20.00 -> 19.00" in outcome(summary(after={"rouge_l": 19.0}))
        assert "ended as cancelled" in outcome(summarise(Job(id="job_1", state="cancelled"), None))


def test_the_question_in_a_rendered_prompt() -> None:
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert question(chat) == "What is 1+1?"
    assert question("### Instruction:\nAdd.\n") == "### Instruction:\nAdd.\n"


class TestSubprocess:
    def test_its_output(self) -> None:
        assert run_subprocess([sys.executable, "-c", "print(input())"], given="said\n", timeout=20) == "said\n"

    def test_its_failure_tells_why(self) -> None:
        with pytest.raises(MinillmError, match="no such wheel"):
            run_subprocess([sys.executable, "-c", "raise SystemExit('no such wheel')"], timeout=20)

    def test_it_does_not_outlast_its_time(self) -> None:
        started = time.monotonic()
        with pytest.raises(MinillmError, match="more than"):
            run_subprocess([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5)
        assert time.monotonic() - started < 20

    def test_it_does_not_outlast_its_parent(self) -> None:
        read_end, write_end = os.pipe()
        child = f"import os, time; os.write({write_end}, b'alive'); time.sleep(300)"
        program = (
            "import subprocess, sys\n"
            "from minillm.embedded import die_with_parent\n"
            f"command = [sys.executable, '-c', {child!r}]\n"
            f"subprocess.Popen(command, preexec_fn=die_with_parent, pass_fds=[{write_end}]).wait()\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", program], pass_fds=[write_end], cwd=Path(__file__).parents[2])
        os.close(write_end)
        assert os.read(read_end, 32) == b"alive"
        parent.send_signal(signal.SIGKILL)
        parent.wait(20)
        # Only the child still holds the write end: the end of file is its death.
        assert select.select([read_end], [], [], 20)[0], "the child lives on"
        assert os.read(read_end, 32) == b""
        os.close(read_end)


class TestEmbeddedService:
    def test_one_that_cannot_start_says_why(self, tmp_path: Path) -> None:
        service = EmbeddedService(
            tmp_path, port=0, environment={**os.environ, "MINILLM_LOG_LEVEL": "LOUD"}, log=tmp_path / "service.log"
        )
        try:
            service.start()
            with pytest.raises(MinillmError, match=r"before it was ready[\s\S]*service\.log"):
                service.ready(timeout=60)
        finally:
            service.stop()
