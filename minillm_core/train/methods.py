"""A training method as data: where its responses come from, and which terms its loss has.

The loop (:mod:`minillm_core.train.loop`) knows no method by name. It reads these fields, so that a
baseline differs from MiniLLM in this file and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from minillm_core import minillm
from minillm_core.spec import GKD, KD, SFT, JobSpec, MiniLLM, ResolvedMiniLLM, SeqKD


@dataclass(frozen=True)
class Method:
    """One way to train.

    ``on_policy`` is the share of a round's rows whose response is sampled; the others keep the
    dataset's. ``inner_epochs`` passes are made over each round of ``rollouts_per_round`` rows.
    """

    name: str
    responses: Literal["dataset", "teacher", "rollout"]
    on_policy: float = 0.0
    temperature: float = 1.0
    rollouts_per_round: int = 0
    inner_epochs: int = 1
    cross_entropy: float = 0.0
    """Coefficient of the cross-entropy on the responses."""
    divergence: str | None = None
    divergence_weight: float = 0.0
    divergence_params: dict[str, float] = field(default_factory=dict)
    policy: ResolvedMiniLLM | None = None
    """The settings of :mod:`minillm_core.minillm`, where that is the method."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a training step uses the teacher's distribution."""
        return self.divergence is not None or self.policy is not None or (self.lm_coef > 0 and self.lm_kd_ratio > 0)

    @property
    def uses_teacher_logp(self) -> bool:
        """Whether rewards or importance weights are made of the teacher's log-probability of each sampled token."""
        return self.policy is not None and minillm.uses_teacher_logp(self.policy)

    @property
    def teacher_mix_alpha(self) -> float:
        """Share of the teacher in the sampling distribution."""
        return self.policy.teacher_mix_alpha if self.policy is not None else 0.0

    @property
    def lm_coef(self) -> float:
        """Coefficient of the loss on the pre-training corpus, where the job has one."""
        return self.policy.lm_coef if self.policy is not None else 0.0

    @property
    def lm_kd_ratio(self) -> float:
        """Share of forward KL to the teacher within that loss."""
        return self.policy.kd_ratio if self.policy is not None else 0.0

    @property
    def samples_student(self) -> bool:
        return self.responses == "rollout" and self.on_policy > 0


SFT_METHOD = Method(name="sft", responses="dataset", cross_entropy=1.0)
"""The supervised phases before the method."""


def resolve_method(job: JobSpec) -> Method:
    """The method of a job as data, with recipes and open settings decided."""
    method = job.method
    rows = job.training.rows_per_step
    if isinstance(method, SFT):
        return Method(name="sft", responses="dataset", cross_entropy=1.0, rollouts_per_round=rows)
    if isinstance(method, KD):
        return Method(
            name="kd",
            responses="dataset",
            rollouts_per_round=rows,
            temperature=method.temperature,
            cross_entropy=1.0 - method.kd_ratio,
            divergence=method.divergence if method.kd_ratio > 0 else None,
            divergence_weight=method.kd_ratio,
            divergence_params=_divergence_params(method.divergence, method.jsd_beta, method.skew_alpha),
        )
    if isinstance(method, SeqKD):
        return Method(
            name="seqkd",
            responses="teacher",
            rollouts_per_round=rows,
            temperature=method.temperature,
            cross_entropy=1.0 - method.kd_ratio,
            divergence="forward_kl" if method.kd_ratio > 0 else None,
            divergence_weight=method.kd_ratio,
        )
    if isinstance(method, GKD):
        return Method(
            name="gkd",
            responses="rollout",
            on_policy=method.on_policy_fraction,
            rollouts_per_round=method.rollouts_per_round or rows,
            temperature=method.temperature,
            divergence=method.divergence,
            divergence_weight=1.0,
            divergence_params=_divergence_params(method.divergence, method.jsd_beta, method.skew_alpha),
        )
    assert isinstance(method, MiniLLM)
    return _minillm(method.resolved())


def _minillm(settings: ResolvedMiniLLM) -> Method:
    return Method(
        name="minillm",
        responses="rollout",
        on_policy=1.0,
        temperature=settings.temperature,
        rollouts_per_round=settings.rollouts_per_round,
        inner_epochs=settings.inner_epochs,
        policy=settings,
    )


def _divergence_params(kind: str, jsd_beta: float, skew_alpha: float) -> dict[str, Any]:
    """The parameters that the divergence has; names as in :mod:`minillm_core.objectives.divergences`."""
    if kind == "jsd":
        return {"beta": jsd_beta}
    if kind.startswith("skew"):
        return {"alpha": skew_alpha}
    return {}
