"""Each benchmark runs on a tiny model, and its last line has the keys that it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import write_tiny_model

ROOT = Path(__file__).parents[2]
STEP_PARTS = {"prefill", "decode", "teacher", "student_forward", "loss", "backward", "optimizer", "other"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("bench") / "teacher", "llama", layers=4, scale=4.0)


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_step(teacher: Path) -> None:
    size = ["--layers", "2", "--prompt-tokens", "60", "--steps", "1", "--warmup", "1"]
    result = run("benchmarks.step", "--quick", "--teacher", str(teacher), *size)
    assert result["quick"] is True
    assert result["response_tokens"] == 4 * 16
    assert set(result["parts"]) == STEP_PARTS
    for key in ("ours_step_s", "ours_peak_rss_mb", "roofline_s", "roofline_fraction", "growth_512_over_64"):
        assert result[key] > 0, key
    assert sum(result["parts"].values()) == pytest.approx(result["ours_step_s"], rel=0.05)


def test_round(teacher: Path) -> None:
    result = run("benchmarks.round", "--quick", "--teacher", str(teacher), "--layers", "2", "--prompt-tokens", "60")
    ours, naive = result["counters"], result["naive_counters"]
    assert set(ours) == set(naive)
    tokens = result["rollout_tokens"]
    # The last token of a row is fed to nobody, and the teacher sees every other token once.
    assert ours["teacher_tokens"] == tokens - 8
    assert ours["student_decode_steps"] == naive["student_decode_steps"] == 15
    assert ours["teacher_decode_steps"] < naive["teacher_decode_steps"]
    # Sampled, scored twice, and once in each of four inner epochs.
    assert naive["teacher_tokens"] == naive["student_tokens"] == (tokens - 8) + 6 * tokens
    assert result["teacher_token_ratio"] <= 1.05
    for key in ("round_s", "naive_round_s", "speedup_over_naive", "mixed_over_student", "mixed_over_naive"):
        assert result[key] > 0, key


def test_api() -> None:
    size = ["--jobs", "1500", "--points", "10000", "--clients", "1", "8", "--seconds", "0.1", "--slices", "1"]
    result = run("benchmarks.api", *size, "--operations", "get_job", "get_job_304", "list", "post_job")
    assert result["errors"] == 0
    for name in ("get_job_ratio_to_bare", "get_job_304_ratio", "list_ratio_to_bare", "post_job_ratio_to_bare"):
        assert result[name] > 0
    assert set(result["growth"]) == {"get_job", "get_job_304", "list", "post_job"} and result["growth_worst"] > 0
    assert result["list"]["8"]["ours"]["p99_ms"] > 0 and result["posts_at_once"]["clients"] == 8
