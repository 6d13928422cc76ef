"""ZeRO on two ranks: every stage trains alike, saves, and goes on from where it stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.minillm_core.tiny_runs import (
    ROOT,
    environment,
    events,
    last_weights,
    losses,
    merge,
    of_type,
    run_here,
    run_program,
    run_ranks,
    write_run,
)

SFT = {"max_steps": 2, "rows_per_step": 8, "eval_every": 1, "learning_rate": 1e-2}
CASES = {
    "minillm-1": {"resources": {"gpus": 2, "zero_stage": 1}},
    "kd-1": {"resources": {"gpus": 2, "zero_stage": 1}, "method": {"type": "kd"}},
    # Half of the rows sampled, half the dataset's; and the teacher's responses, sampled by both ranks.
    "gkd-1": {
        "resources": {"gpus": 2, "zero_stage": 1},
        "method": {"type": "gkd", "on_policy_fraction": 0.5, "rollouts_per_round": 16},
    },
    "seqkd-1": {"resources": {"gpus": 2, "zero_stage": 1}, "method": {"type": "seqkd", "kd_ratio": 0.5}},
    "lora-1": {"resources": {"gpus": 2, "zero_stage": 1}, "student": {"lora": {"rank": 4}}},
    # Four rows on one rank and three on the other; and one row, so that a rank has none.
    "uneven-1": {
        "resources": {"gpus": 2, "zero_stage": 1},
        "method": {"type": "minillm", "recipe": "reference", "rollouts_per_round": 14, "inner_epochs": 2},
        "training": {"rows_per_step": 7},
    },
    "one-row-2": {
        "resources": {"gpus": 2, "zero_stage": 2},
        "method": {"type": "minillm", "rollouts_per_round": 2, "inner_epochs": 2},
        "training": {"rows_per_step": 1},
    },
    "minillm-2": {"resources": {"gpus": 2, "zero_stage": 2}},
    "minillm-3": {"resources": {"gpus": 2, "zero_stage": 3}},
    # The whole way of a job at stage 3: a teacher and a student that are used again after their phases.
    "phases-3": {
        "resources": {"gpus": 2, "zero_stage": 3},
        "training": {
            "teacher_sft": SFT,
            "student_sft": SFT,
            "max_steps": 4,
            "activation_checkpointing": True,
        },
    },
    # Tied embeddings and a family that decodes through transformers, with an adapter.
    "lora-3": {
        "resources": {"gpus": 2, "zero_stage": 3},
        "student": {"lora": {"rank": 4}},
        "training": {"student_sft": SFT, "max_steps": 4},
        "family": "gemma2",
    },
}
LOOKS = {"gkd-1": 2, "seqkd-1": 5, "phases-3": 7, "lora-3": 5}
"""At which look of the loop a run is cut short: in the middle of the first round of its last phase."""


HEALTH = (
    *("rollout_reward", "rollout_reverse_kl", "importance_weight", "effective_sample_size"),
    *("response_tokens", "repetition", "truncated_fraction"),
)
"""Of a round, over all ranks: the guards of each rank judge by it."""


def settings(name: str) -> dict[str, Any]:
    """Of a case on two ranks: a row or two a micro-batch, and not always as many of them on each rank."""
    return merge({"training": {"micro_batch_tokens": 128}}, CASES[name])


PROGRAM = """
from pathlib import Path
from minillm_core.train.distributed import Ranks
from minillm_core.train.stop import Stopped
from tests.minillm_core.test_zero import CASES, LOOKS
from tests.minillm_core.tiny_runs import run_here

folder = Path(sys.argv[1])
ranks = Ranks.start()
for name in CASES:
    run_here(folder / "whole" / name)
    try:
        run_here(folder / "cut" / name, stop_after=LOOKS.get(name, 4))
    except Stopped:
        run_here(folder / "cut" / name)
ranks.barrier()
ranks.close()
"""


pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Every case run in one go and run with a stop, all by one pair of processes."""
    folder = tmp_path_factory.mktemp("zero")
    for kind in ("whole", "cut"):
        for name in CASES:
            write_run(folder / kind / name, **settings(name))
    assert run_ranks(PROGRAM, folder) == 0
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_a_stop_changes_no_bit(runs, name):
    whole, cut = runs / "whole" / name, runs / "cut" / name
    messages = [event["code"] for event in of_type(events(cut), "message")]
    assert messages.count("resuming") == 1
    expected, found = losses(events(whole)), losses(events(cut))
    assert len(expected) >= 4 and found == expected
    # The last step's weights, and the student's, which may be those of an evaluation before.
    for found_in in (last_weights, weights):
        expected_weights, found_weights = found_in(whole), found_in(cut)
        assert expected_weights.keys() == found_weights.keys()
        for tensor, value in expected_weights.items():
            assert torch.equal(found_weights[tensor], value), tensor


@pytest.mark.parametrize("name", CASES)
def test_every_stage_on_two_ranks_has_the_losses_of_one_rank_without(runs, tmp_path, name):
    """And those of all rows in one micro-batch."""
    expected = run_here(write_run(tmp_path, **{**CASES[name], "resources": {"gpus": 1, "zero_stage": 0}}))
    found = events(runs / "whole" / name)
    for phase in ("teacher_sft", "student_sft", "training"):
        for metric in ("loss", "validation_loss", "dev_rouge_l", *HEALTH):
            assert losses(found, metric, phase) == pytest.approx(losses(expected, metric, phase), abs=1e-4)
    trained, alone = last_weights(runs / "whole" / name), last_weights(tmp_path)
    assert trained.keys() == alone.keys()
    for tensor, value in alone.items():
        torch.testing.assert_close(trained[tensor], value, rtol=0.0, atol=1e-3)


def test_sigterm_and_a_second_start(runs, tmp_path):
    """The program itself, on two ranks: it ends with 75 at a step's end, and its second start ends the run."""
    folder = write_run(tmp_path, **settings("minillm-1"))
    process = subprocess.Popen(
        [sys.executable, "-m", "minillm_core", str(folder)], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 200
        while not losses(events(folder)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=100)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
    assert code == 75
    assert [event["code"] for event in of_type(events(folder), "message")][-1] == "stopped"
    code, found = run_program(folder)
    assert code == 0
    whole = runs / "whole" / "minillm-1"
    assert losses(found) == losses(events(whole))
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(folder).items())


@pytest.mark.slow
@pytest.mark.parametrize("resources", [{"gpus": 1, "zero_stage": 1}, {"gpus": 2, "zero_stage": 3}])
def test_optimizer_in_main_memory(tmp_path, resources):
    """DeepSpeed's own Adam, which it compiles at first use: the losses of torch's."""
    expected = losses(run_here(write_run(tmp_path / "plain", training={"max_steps": 4})))
    folder = write_run(tmp_path / "offload", training={"max_steps": 4}, resources={**resources, "cpu_offload": True})
    code, found = run_program(folder, timeout=280)
    assert code == 0
    assert losses(found) == pytest.approx(expected, abs=1e-4)
    assert json.loads((folder / "spec.json").read_text())["resources"]["cpu_offload"]
