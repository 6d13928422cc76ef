"""A tiny teacher and student, a round of theirs, and the gradient of one step on it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minillm_core.data.dataset import TokenizedRow
from minillm_core.models.families import disable_dropout
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.pruning import prune_layers
from minillm_core.rollout.decoder import Decoder, make_decoder
from minillm_core.spec import JobSpec, ResourceSpec
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine
from minillm_core.train.methods import Method, resolve_method
from minillm_core.train.rollouts import Sampling, collect_round
from minillm_core.train.rounds import Round, TrainRow
from minillm_core.train.step import train_step
from minillm_core.train.student import StudentModule, loss_head
from tests.minillm_core.tiny_runs import tiny_spec
from tests.tiny_models import write_tiny_model

VOCAB = 384
EOS = 2
WIDTH = 12
PAD = 0

METHODS: dict[str, dict[str, Any]] = {
    "minillm": {"type": "minillm", "rollouts_per_round": 8},
    "reference": {"type": "minillm", "recipe": "reference", "rollouts_per_round": 8},
    "gkd": {"type": "gkd", "on_policy_fraction": 0.5},
    "kd": {"type": "kd"},
}


def method_of(name: str, **settings: Any) -> Method:
    """A method with some of its settings changed."""
    return resolve_method(JobSpec.model_validate(tiny_spec(method={**METHODS[name], **settings})))


@dataclass
class Models:
    """Both models and one engine for all steps: none of them is ever applied."""

    teacher: Any
    student: nn.Module

    @functools.cached_property
    def answering(self) -> Decoder:
        """The teacher as the trainer has it."""
        return make_decoder(self.teacher)

    @functools.cached_property
    def ranks(self) -> Ranks:
        return Ranks.start()

    @functools.cached_property
    def engine(self) -> Watched:
        head = loss_head(self.answering.head, VOCAB)
        module = StudentModule(self.student, vocab=VOCAB, teacher_head=head, zero_stage=0)
        return Watched(
            module,
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            grad_clip=1.0,
            dtype="float32",
            resources=ResourceSpec(gpus=self.ranks.world, zero_stage=0),
            ranks=self.ranks,
        )


def make_models(folder: Path, family: str = "llama") -> Models:
    """The student is half of the teacher's layers, moved a little so that nothing is equal."""
    if not (folder / "config.json").exists():
        write_tiny_model(folder, family, layers=4, scale=4.0)
    teacher = load_causal_lm(folder, torch.float32)
    disable_dropout(teacher)
    student = prune_layers(teacher, 2)
    teacher.requires_grad_(False)
    return Models(teacher, student.requires_grad_(True))


def make_rows(count: int = 8) -> list[TokenizedRow]:
    """Prompts of unequal length, each with an eos inside, and responses of 1 to 8 tokens that end in eos."""
    generator = torch.Generator().manual_seed(11)
    rows = []
    for index in range(count):
        prompt = torch.randint(3, VOCAB, (3 + 2 * (index % 5),), generator=generator).tolist()
        prompt[1] = EOS
        response = [*torch.randint(3, VOCAB, (index % 8,), generator=generator).tolist(), EOS]
        rows.append(TokenizedRow(prompt, response, "", "", False))
    return rows


def make_round(models: Models, method: Method, rows: Sequence[TokenizedRow], *, width: int = WIDTH) -> Round:
    """One round of the method, sampled by this process alone."""
    alone = Ranks(0, 1, torch.device("cpu"))
    if not method.samples_student:
        kept = {number: TrainRow(row.prompt_ids, row.response_ids) for number, row in enumerate(rows)}
        return Round(0, kept, len(rows), len(rows))
    round_, *_ = collect_round(
        0,
        rows,
        method,
        student=make_decoder(models.student),
        teacher=models.answering,
        sampling=Sampling([EOS], VOCAB, width, batch_rows=4),
        rows_per_step=len(rows),
        seed=5,
        ranks=alone,
    )
    return round_


class Watched(Engine):
    """Keeps the gradient of a step in place of applying it."""

    gradient: dict[str, torch.Tensor]

    def step(self, learning_rate: float) -> float | None:
        named = dict(self.module.model.named_parameters())
        self.gradient = {name: parameter.grad.clone() for name, parameter in named.items()}
        for parameter in named.values():
            parameter.grad = None
        return 1.0


def step_gradient(
    models: Models,
    method: Method,
    rows: Sequence[TrainRow],
    *,
    blocks: torch.Tensor | None = None,
    budget: int = 100_000,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics of one step on ``rows`` and the student's gradient, name by name."""
    result = train_step(
        models.engine,
        rows,
        blocks,
        method,
        models.answering,
        learning_rate=1e-3,
        micro_batch_tokens=budget,
        response_width=WIDTH,
        pad_id=PAD,
        ranks=models.ranks,
    )
    assert result is not None
    return result.metrics, models.engine.gradient


def assert_same(
    found: tuple[dict[str, float], dict[str, torch.Tensor]],
    expected: tuple[dict[str, float], dict[str, torch.Tensor]],
) -> None:
    """Metrics to 1e-5, every tensor of the gradient to 1e-5 of its largest entry."""
    metrics = {name: value for name, value in found[0].items() if name in expected[0]}
    assert metrics.keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert abs(found[0][name] - value) <= 1e-5 * max(1.0, abs(value)), name
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        error = float((found[1][name] - gradient).abs().max())
        assert error <= 1e-5 * max(1e-3, float(gradient.abs().max())), (name, error)
