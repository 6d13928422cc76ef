"""What a teacher and a student may be: families, padded vocabularies, adapters, layer lists, chains of jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import minillm_core.run as run_module
import minillm_core.train.loop as loop
from minillm_core.spec import RunContext
from minillm_core.train.engine import Engine
from tests.minillm_core.tiny_runs import losses, of_type, run_here, write_run
from tests.tiny_models import FAMILIES, tiny_tokenizer, write_tiny_model

THREE_STEPS = {"max_steps": 3, "eval_every": 3}
START = {"prune_teacher": None, "model": "path:start"}
MINILLM = {"type": "minillm", "rollouts_per_round": 16, "inner_epochs": 1}


@dataclass
class Seen:
    """State dicts at the ends of a run: what it had in its hands, not what it wrote."""

    teacher_before: dict[str, torch.Tensor] = field(default_factory=dict)
    teacher: torch.nn.Module | None = None
    student_before: dict[str, torch.Tensor] = field(default_factory=dict)
    student_after: dict[str, torch.Tensor] = field(default_factory=dict)
    rollouts: list[list[int]] = field(default_factory=list)


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def seen(monkeypatch) -> Seen:
    found = Seen()
    prepare, build, finished = run_module.prepare, run_module.build_student, Engine.finished_model

    def watched_prepare(*args):
        parts, teacher = prepare(*args)
        found.teacher, found.teacher_before = teacher, copied(teacher)
        return parts, teacher

    def watched_build(*args):
        student = build(*args)
        found.student_before = copied(student)
        return student

    def watched_finish(engine):
        student = finished(engine)
        found.student_after = copied(student)
        return student

    collect = loop.collect_round

    def watched_collect(*args, **kwargs):
        result = collect(*args, **kwargs)
        found.rollouts += [row.response_ids for row in result[0].rows.values()]
        return result

    monkeypatch.setattr(run_module, "prepare", watched_prepare)
    monkeypatch.setattr(run_module, "build_student", watched_build)
    monkeypatch.setattr(Engine, "finished_model", watched_finish)
    monkeypatch.setattr(loop, "collect_round", watched_collect)
    return found


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_only_the_student_moves(tmp_path, family, seen):
    found = run_here(write_run(tmp_path, family=family, method=MINILLM, training=THREE_STEPS))
    values = losses(found)
    assert len(values) == 3 and all(map(math.isfinite, values))
    assert all(value > 0 for value in losses(found, "reverse_kl"))
    assert moved(seen.teacher_before, copied(seen.teacher)) == set()
    # Every tensor of the student takes part in the loss, but for positions and GPT-2's keys' bias, whose
    # gradient is zero by the softmax's invariance.
    unmoved = seen.student_before.keys() - moved(seen.student_before, seen.student_after)
    assert not [name for name in unmoved if not name.endswith(("inv_freq", "k_proj.bias"))]
    assert of_type(found, "student")


class TestPaddedVocabularies:
    def widened(self, source: Path, target: Path, width: int, layers: int | None = None) -> Path:
        """The same model with ``width`` rows in embedding and head; the rows added are large random ones."""
        model = AutoModelForCausalLM.from_pretrained(source)
        torch.manual_seed(1)
        model.resize_token_embeddings(width, mean_resizing=False)
        with torch.no_grad():
            for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
                matrix[384:] = 3.0 * torch.randn(width - 384, matrix.shape[1])
        model.save_pretrained(target)
        tiny_tokenizer(384).save_pretrained(target)
        return target

    @pytest.mark.parametrize("family", ["qwen2", "llama"])
    def test_different_widths_change_nothing(self, tmp_path, family, seen):
        """Heads of 400 and 416 rows over one tokenizer of 384: the same losses as without padding."""
        tight, wide = tmp_path / "tight", tmp_path / "wide"
        for folder in (tight, wide):
            student = write_tiny_model(folder / "start", family, layers=2, seed=5, scale=4.0)
            tiny_tokenizer(384).save_pretrained(student)
            write_run(folder, family=family, student=START, training=THREE_STEPS, method=MINILLM)
            tiny_tokenizer(384).save_pretrained(folder / "teacher")
        self.widened(tight / "start", wide / "start", 400)
        self.widened(tight / "teacher", wide / "teacher", 416)
        expected = losses(run_here(tight))
        found = run_here(wide)
        assert losses(found) == pytest.approx(expected, abs=1e-5)
        assert max(max(ids) for ids in seen.rollouts) < 384
        exported = AutoModelForCausalLM.from_pretrained(wide / "student")
        assert exported.config.vocab_size == 400


class TestLoraTeacher:
    def adapter(self, teacher: Path, folder: Path) -> Path:
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(teacher),
            LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0.0, 0.3)
        model.save_pretrained(folder)
        return folder

    def test_the_adapter_is_part_of_the_teacher(self, tmp_path, seen):
        plain = losses(run_here(write_run(tmp_path / "plain", training={"max_steps": 1})))
        folder = write_run(
            tmp_path / "adapted",
            teacher={"adapter": "path:adapter"},
            student=START,
            training={"max_steps": 1},
        )
        write_tiny_model(folder / "start", layers=2, seed=5, scale=4.0)
        self.adapter(folder / "teacher", folder / "adapter")
        found = losses(run_here(folder))
        bare = load_file(folder / "teacher" / "model.safetensors")
        factors = load_file(folder / "adapter" / "adapter_model.safetensors")
        for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
            low_A, low_B = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            expected = bare[f"{name}.weight"] + (16 / 4) * low_B @ low_A
            torch.testing.assert_close(seen.teacher_before[f"{name}.weight"], expected)
        assert found != plain


def test_explicit_layers_are_the_students_first_weights(tmp_path, seen):
    run_here(write_run(tmp_path, student={"prune_teacher": {"layers": [1, 3]}}, training={"max_steps": 1}))
    teacher = load_file(tmp_path / "teacher" / "model.safetensors")
    for place, layer in enumerate([1, 3]):
        name = "self_attn.q_proj.weight"
        assert torch.equal(seen.student_before[f"model.layers.{place}.{name}"], teacher[f"model.layers.{layer}.{name}"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 2


def test_a_student_is_teacher_or_student_of_the_next_job(tmp_path, seen):
    """A teacher-assistant chain: 4 layers teach 2, which teach 1; then the last is trained by the first."""
    sft = {"student_sft": {"max_steps": 2, "rows_per_step": 8}, "max_steps": 1}
    run_here(write_run(tmp_path / "assistant", training=sft))
    made = load_file(tmp_path / "assistant" / "student" / "model.safetensors")

    models = {"model_assistant": str(tmp_path / "assistant" / "student")}
    changes = {"teacher": {"model": "model_assistant"}, "student": {"prune_teacher": {"layers": 1}}}
    found = run_here(write_run(tmp_path / "last", training=sft, **changes), context=RunContext(models=models))
    assert of_type(found, "student")
    assert all(torch.equal(made[name], tensor) for name, tensor in seen.teacher_before.items() if name in made)
    assert made.keys() <= seen.teacher_before.keys()

    models["model_last"] = str(tmp_path / "last" / "student")
    again = write_run(
        tmp_path / "again", student={"prune_teacher": None, "model": "model_last"}, training={"max_steps": 1}
    )
    found = run_here(again, context=RunContext(models=models))
    last = load_file(tmp_path / "last" / "student" / "model.safetensors")
    assert of_type(found, "student")
    assert all(torch.equal(seen.student_before[name], tensor) for name, tensor in last.items())
