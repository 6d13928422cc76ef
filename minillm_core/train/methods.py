"""A training method as data: where its responses come from, and which terms its loss has.

The loop (:mod:`minillm_core.train.loop`) knows no method by name. It reads these fields, so that a
baseline differs from MiniLLM in this file and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from minillm_core.spec import GKD, KD, SFT, JobSpec, MiniLLM, ResolvedMiniLLM, SeqKD


@dataclass(frozen=True)
class PolicyTerms:
    """The MiniLLM loss on rollouts (paper equation 7)."""

    cliprange: float | None
    clip_sign: Literal["signed", "unsigned"]
    reward_scale: float
    reward_clip: float | None
    reward_baseline: float
    reward_start: Literal["next", "current"]
    gamma: float
    length_norm: bool
    whitening: Literal["off", "masked", "padded"]
    long_part: bool
    single_step: bool
    single_step_weighted: bool


@dataclass(frozen=True)
class Method:
    """One way to train.

    ``on_policy`` is the share of a round's rows whose response is sampled; the others keep the
    dataset's. ``inner_epochs`` passes are made over each round of ``rollouts_per_round`` rows.
    """

    name: str
    responses: Literal["dataset", "teacher", "rollout"]
    on_policy: float = 0.0
    teacher_mix_alpha: float = 0.0
    temperature: float = 1.0
    rollouts_per_round: int = 0
    inner_epochs: int = 1
    cross_entropy: float = 0.0
    """Coefficient of the cross-entropy on the responses."""
    divergence: str | None = None
    divergence_weight: float = 0.0
    divergence_params: dict[str, float] = field(default_factory=dict)
    policy: PolicyTerms | None = None
    lm_coef: float = 0.0
    """Coefficient of the loss on the pre-training corpus, where the job has one."""
    lm_kd_ratio: float = 0.0
    selection: Literal["rouge_l", "loss"] = "rouge_l"
    """What picks the student: the highest dev ROUGE-L or the lowest validation loss."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a training step uses the teacher's distribution."""
        return self.divergence is not None or self.policy is not None or (self.lm_coef > 0 and self.lm_kd_ratio > 0)

    @property
    def uses_teacher_logp(self) -> bool:
        """Whether rewards or importance weights are made of the teacher's log-probability of each sampled token."""
        return self.teacher_mix_alpha > 0 or (self.policy is not None and self.policy.long_part)

    @property
    def samples_student(self) -> bool:
        return self.responses == "rollout" and self.on_policy > 0


SFT_METHOD = Method(name="sft", responses="dataset", cross_entropy=1.0, selection="loss")
"""The supervised phases before the method: the state of lowest validation loss is kept."""


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
        teacher_mix_alpha=settings.teacher_mix_alpha,
        temperature=settings.temperature,
        rollouts_per_round=settings.rollouts_per_round,
        inner_epochs=settings.inner_epochs,
        policy=PolicyTerms(
            cliprange=settings.cliprange if settings.clip else None,
            clip_sign=settings.clip_sign,
            reward_scale=settings.reward_scale,
            reward_clip=settings.reward_clip,
            reward_baseline=settings.reward_baseline,
            reward_start=settings.reward_start,
            gamma=settings.gamma,
            length_norm=settings.length_norm,
            whitening=settings.whitening,
            long_part=settings.long_part,
            single_step=settings.single_step,
            single_step_weighted=settings.single_step_weighted,
        ),
        lm_coef=settings.lm_coef,
        lm_kd_ratio=settings.kd_ratio,
    )


def _divergence_params(kind: str, jsd_beta: float, skew_alpha: float) -> dict[str, Any]:
    """The parameters that the divergence has; names as in :mod:`minillm_core.objectives.divergences`."""
    if kind == "jsd":
        return {"beta": jsd_beta}
    if kind.startswith("skew"):
        return {"alpha": skew_alpha}
    return {}
