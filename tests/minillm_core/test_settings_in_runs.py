"""What a job sets of its training is what the run does: rates, optimizer, number formats, recomputation, dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import minillm_core.prepare as prepare_module
import minillm_core.run as run_module
import minillm_core.train.loop as loop
import minillm_core.train.teacher_responses as teacher_responses
from minillm_core.spec import SftPhase, TrainingSpec
from minillm_core.train.engine import Engine
from minillm_core.train.loop import PhasePlan
from tests.minillm_core.tiny_runs import losses, run_here, write_run
from tests.tiny_models import write_tiny_model

KD = {"type": "kd"}
MINILLM = {"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 1}


class TestPlan:
    def test_of_the_method(self):
        training = TrainingSpec(
            max_steps=50, rows_per_step=4, learning_rate=0.1, schedule="linear", warmup_steps=3, weight_decay=0.2
        )
        assert PhasePlan.of_training(training) == PhasePlan(50, 4, 0.1, "linear", 3, 0.2, eval_every=5, save_every=5)
        given = training.model_copy(update={"eval_every": 7, "save_every": 9})
        assert PhasePlan.of_training(given) == PhasePlan(50, 4, 0.1, "linear", 3, 0.2, eval_every=7, save_every=9)

    def test_fine_tuning_is_three_epochs_with_a_validation_each(self):
        """20 rows, 8 a step: an epoch is 3 steps."""
        sft = SftPhase(rows_per_step=8, learning_rate=0.1, schedule="constant", warmup_steps=2, weight_decay=0.3)
        plan = PhasePlan.of_sft(sft, 20)
        assert plan == PhasePlan(9, 8, 0.1, "constant", 2, 0.3, eval_every=3, save_every=3)
        assert PhasePlan.of_sft(sft.model_copy(update={"epochs": 0.1}), 20).max_steps == 1
        limited = PhasePlan.of_sft(sft.model_copy(update={"max_steps": 2, "eval_every": 5}), 20)
        assert (limited.max_steps, limited.eval_every) == (2, 2)


def test_rates_are_those_of_each_phases_schedule(tmp_path: Path) -> None:
    sft = {"max_steps": 2, "rows_per_step": 8, "learning_rate": 0.01, "schedule": "linear"}
    training = {
        "student_sft": sft,
        "max_steps": 5,
        "learning_rate": 0.004,
        "schedule": "linear",
        "warmup_steps": 2,
    }
    found = run_here(write_run(tmp_path, method=KD, training=training))
    assert losses(found, "learning_rate", "student_sft") == pytest.approx([0.01, 0.005])
    assert losses(found, "learning_rate") == pytest.approx([0.002, 0.004, 0.004, 0.004 * 2 / 3, 0.004 / 3])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What DeepSpeed and the optimizer of each phase have, as the phase ends."""
    found: list[dict[str, Any]] = []
    finished = Engine.finished_model

    def watched(engine: Engine) -> nn.Module:
        inside = engine._engine
        (group,) = inside.optimizer.param_groups
        found.append(
            {
                "betas": tuple(group["betas"]),
                "weight_decay": group["weight_decay"],
                "grad_clip": inside.gradient_clipping(),
                "zero_stage": inside.zero_optimization_stage(),
                "dtypes": {parameter.dtype for parameter in engine.module.parameters()},
            }
        )
        return finished(engine)

    monkeypatch.setattr(Engine, "finished_model", watched)
    return found


def test_the_optimizer_is_that_of_the_job(tmp_path: Path, engines: list[dict[str, Any]]) -> None:
    training = {
        "student_sft": {"max_steps": 1, "rows_per_step": 8, "weight_decay": 0.25},
        "max_steps": 1,
        "betas": [0.7, 0.8],
        "weight_decay": 0.125,
        "grad_clip": 0.5,
        "dtype": "bfloat16",
    }
    run_here(write_run(tmp_path, method=KD, training=training, resources={"zero_stage": 3}))
    common = {"betas": (0.7, 0.8), "grad_clip": 0.5, "zero_stage": 3, "dtypes": {torch.bfloat16}}
    assert engines == [{**common, "weight_decay": 0.25}, {**common, "weight_decay": 0.125}]


@pytest.mark.parametrize("decode", [None, "bfloat16"])
def test_the_student_decodes_in_its_own_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: str | None
) -> None:
    make, found = loop.make_decoder, []

    def watched(model: nn.Module, *, dtype: torch.dtype, **options: Any) -> Any:
        found.append(dtype)
        return make(model, dtype=dtype, **options)

    monkeypatch.setattr(loop, "make_decoder", watched)
    run_here(write_run(tmp_path, method=MINILLM, training={"max_steps": 1, "eval_every": 1, "decode_dtype": decode}))
    assert set(found) == {torch.float32 if decode is None else torch.bfloat16}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Teacher and student of a run, as its first phase gets them."""
    found: dict[str, nn.Module] = {}
    prepare, build = run_module.prepare, run_module.build_student

    def watched_prepare(*arguments: Any) -> Any:
        parts, found["teacher"] = prepare(*arguments)
        return parts, found["teacher"]

    def watched_build(*arguments: Any) -> nn.Module:
        found["student"] = build(*arguments)
        return found["student"]

    monkeypatch.setattr(run_module, "prepare", watched_prepare)
    monkeypatch.setattr(run_module, "build_student", watched_build)
    return found


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_teacher_is_held_in_its_own_format(tmp_path: Path, models: dict[str, nn.Module], dtype: str | None) -> None:
    run_here(write_run(tmp_path, method=KD, teacher={"dtype": dtype}, training={"max_steps": 1, "eval_every": 1}))
    formats = {name: {parameter.dtype for parameter in model.parameters()} for name, model in models.items()}
    teacher = torch.float32 if dtype is None else torch.bfloat16
    assert formats == {"teacher": {teacher}, "student": {torch.float32}}


def test_neither_model_has_dropout(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    """GPT-2's is 0.1 in its config; the student here is no pruning of a teacher that has lost its own."""
    write_tiny_model(tmp_path / "start", "gpt2", layers=2, scale=4.0)
    student = {"prune_teacher": None, "model": "path:start"}
    run_here(write_run(tmp_path, family="gpt2", method=KD, student=student, training={"max_steps": 1, "eval_every": 1}))
    for name, model in models.items():
        rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        assert len(rates) > 4 and not any(rates), name


@pytest.mark.parametrize("asked", [False, True])
def test_layers_are_recomputed_where_the_job_says_so(
    tmp_path: Path, models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    enable, recomputing = prepare_module.enable_activation_checkpointing, []

    def watched(model: nn.Module) -> None:
        recomputing.append(model)
        enable(model)

    monkeypatch.setattr(prepare_module, "enable_activation_checkpointing", watched)
    sft = {"max_steps": 1, "rows_per_step": 8}
    training = {"max_steps": 1, "eval_every": 1, "activation_checkpointing": asked, "teacher_sft": sft}
    run_here(write_run(tmp_path, method=KD, training=training))
    assert recomputing == ([models["teacher"], models["student"]] if asked else [])


def test_the_teacher_answers_at_the_methods_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, found = teacher_responses.draw, []

    def watched(*arguments: Any, **options: Any) -> Any:
        found.append((options["temperature"], options["alpha"]))
        return draw(*arguments, **options)

    monkeypatch.setattr(teacher_responses, "draw", watched)
    method = {"type": "seqkd", "temperature": 1.7}
    run_here(write_run(tmp_path, method=method, training={"max_steps": 1, "eval_every": 1}))
    assert found == [(1.7, 0.0)]
