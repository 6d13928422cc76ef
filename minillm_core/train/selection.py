"""Which weights a phase ends with: those of its best evaluation.

An evaluation gives a score that is to be high. Of equal ones the later counts: it has seen more. A
score that was the same at every evaluation tells nothing: the lowest validation loss then decides.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from minillm_core.evaluate.measure import Measurement
from minillm_core.rollout.decoder import Decoder
from minillm_core.spec import JobSpec, Phase
from minillm_core.train.checkpoints import RunState
from minillm_core.train.distributed import Ranks
from minillm_core.train.weights import merged_model

Criterion = Literal["rouge_l", "exact_match", "loss"]
_NAMES = {"rouge_l": "dev ROUGE-L", "exact_match": "dev exact match", "loss": "validation loss"}


def criterion_of(job: JobSpec, measurement: Measurement) -> Criterion:
    """What chooses the job's student."""
    if job.training.selection != "auto":
        return job.training.selection
    return "rouge_l" if measurement.references_have_words else "loss"


@dataclass(frozen=True)
class Selection:
    """Measures the model of a phase on the dev set, and keeps the weights that are best."""

    criterion: Criterion
    measurement: Measurement

    @property
    def samples(self) -> bool:
        """Whether the score is one of sampled answers."""
        return self.criterion != "loss"

    def score(self, model: nn.Module, decoder: Decoder | None) -> tuple[dict[str, float], float]:
        """Numbers to log, and the one that is to be high."""
        if decoder is None:
            loss = self.loss(model)
            return {"validation_loss": loss}, -loss
        values = self.measurement.dev_scores(decoder)
        return values, values[f"dev_{self.criterion}"]

    def loss(self, model: nn.Module) -> float:
        return self.measurement.dev_loss(merged_model(model))


def is_better(value: float, best: float | None) -> bool:
    """Whether an evaluation takes the place of the best so far; one that is not a number never does."""
    if best is None or math.isnan(best):
        return True
    return value >= best


class Kept:
    """The files of the best weights of a phase, and what ``state`` knows of them. Every rank calls every method."""

    def __init__(self, folder: Path, name: str, state: RunState, ranks: Ranks) -> None:
        self._best = folder / f"{name}.safetensors"
        self._level = folder / f"{name}.level.safetensors"
        self._state = state
        self._ranks = ranks

    def undecided(self, value: float) -> bool:
        """Whether all scores of the phase, ``value`` included, are one: the loss is then asked for."""
        level = self._state.level
        return self._state.best_score is None or (level is not None and value == level["score"])

    def offer(self, value: float, loss: float | None, save: Callable[[Path], None]) -> None:
        """Keep the weights of ``state.step`` where they are the best.

        ``loss`` is the validation loss while the scores are :meth:`undecided`, None where they are not or where
        the score is the loss itself. ``save`` writes the weights to a file.
        """
        state = self._state
        if is_better(value, state.best_score):
            state.best_score, state.best_step = value, state.step
            save(self._best)
        if loss is None:
            state.level = None
        elif state.level is None or is_better(-loss, -state.level["loss"]):
            state.level = {"score": value, "loss": loss, "step": state.step}
            self._link(self._best, self._level)

    def settle(self, criterion: Criterion) -> dict[str, Any]:
        """Decide at the end of the phase: what the report says of it."""
        state, level = self._state, self._state.level
        result: dict[str, Any] = {"selection": criterion}
        if level is not None:
            state.best_step = int(level["step"])
            self._link(self._level, self._best)
            result = {"selection": "loss", "undecided": criterion, "validation_loss": level["loss"]}
        if self._ranks.main:
            self._level.unlink(missing_ok=True)
        return {"steps": state.step, "best_step": state.best_step, "best_score": state.best_score, **result}

    def _link(self, source: Path, target: Path) -> None:
        """Make ``target`` a second name of the file."""
        if self._ranks.main:
            aside = target.with_name(f".{target.name}.{os.getpid()}")
            aside.unlink(missing_ok=True)
            try:
                os.link(source, aside)
            except OSError:
                shutil.copy2(source, aside)
            aside.replace(target)
        self._ranks.barrier()


def warnings_of(phase: Phase, result: Mapping[str, Any]) -> dict[str, str]:
    """What a phase's :meth:`Kept.settle` should be told to the user: code -> sentence."""
    found = {}
    if "undecided" in result:
        found["selection_by_loss"] = (
            f"{_NAMES[result['undecided']]} was {result['best_score']:g} at every evaluation of {phase} and tells "
            f"nothing: the lowest validation loss decided (step {result['best_step']})"
        )
    if result["best_step"] == 0:
        found["untrained_student" if phase is Phase.TRAINING else "phase_without_gain"] = (
            f"{phase} made nothing better: none of its evaluations was as good by {_NAMES[result['selection']]} as the "
            "one before its first step, whose weights are kept. A lower learning_rate, more rows or another "
            "training.selection may help"
        )
    return found


def verdict(results: Mapping[str, Any]) -> str:
    """One sentence on which student a job ends with, from what its phases were settled as."""
    training = results[Phase.TRAINING.value]
    by = _NAMES[training["selection"]]
    if training["best_step"] > 0:
        why = ", as the answers' scores were all one" if "undecided" in training else ""
        return f"The student is that of step {training['best_step']} of {training['steps']}, chosen by {by}{why}."
    earlier = results.get(Phase.STUDENT_SFT.value)
    if earlier is not None and earlier["best_step"] > 0:
        state = f"is as student_sft left it after its step {earlier['best_step']}"
    else:
        state = "is untrained"
    return (
        f"The student {state}: no evaluation of the {training['steps']} steps of training was as good by {by} as the "
        "one before the first step."
    )
