"""The training methods and their settings; the recipes of MiniLLM."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from minillm_core.spec.base import Divergence, Flag, Real, Rows, Strict, Temperature, Whole

Share = Annotated[float, Real(ge=0, le=1)]
Mixture = Annotated[float, Real(ge=1e-6, le=1 - 1e-6)]
"""Weight of one distribution in a mixture of two; nearer to its ends float32 has one of them alone."""


class _Sampling(Strict):
    _why_unfiltered: ClassVar[str] = (
        "a token that one model's filter removes has probability zero there, so the importance weight and the "
        "divergence between the models are undefined"
    )
    temperature: Temperature = 1.0
    """Divides the logits of teacher and student alike, in sampling and in every log-probability."""
    top_k: Annotated[int, Whole(0, 1 << 20)] = 0
    top_p: Annotated[float, Real(gt=0, le=1)] = 1.0

    @field_validator("top_k", "top_p")
    @classmethod
    def _full_support(cls, value: float, field: ValidationInfo) -> float:
        off = {"top_k": 0, "top_p": 1.0}[str(field.field_name)]
        if value != off:
            raise ValueError(f"must stay off ({off}) while training: {cls._why_unfiltered}")
        return value


class SFT(Strict):
    """Cross-entropy on the dataset's own responses (the baseline `SFT w/o KD`)."""

    type: Literal["sft"]


class KD(Strict):
    """Word-level distillation on the dataset's responses: (1-k) cross-entropy + k divergence."""

    type: Literal["kd"]
    kd_ratio: Share = 0.5
    divergence: Divergence = "forward_kl"
    temperature: Temperature = 1.0
    jsd_beta: Mixture = 0.5
    skew_alpha: Mixture = 0.1


class SeqKD(_Sampling):
    """Cross-entropy on responses sampled from the teacher, never on the dataset's own (Kim & Rush 2016).

    For that reason `training.student_sft` is off unless the job names it.
    """

    _why_unfiltered: ClassVar[str] = (
        "the responses stand for the teacher's whole distribution, and filtered ones would teach its head alone"
    )
    type: Literal["seqkd"]
    kd_ratio: Share = 0.0
    """Share of the word-level forward KL; 0 is the paper's SeqKD, 0.5 the reference script's."""


class GKD(_Sampling):
    """A divergence on a mixture of the student's own responses and the dataset's (Agarwal et al. 2024)."""

    type: Literal["gkd"]
    on_policy_fraction: Share = 1.0
    divergence: Divergence = "jsd"
    jsd_beta: Mixture = 0.5
    skew_alpha: Mixture = 0.1
    rollouts_per_round: Rows | None = None
    """Responses sampled before each set of steps; `rows_per_step` when left out."""


class MiniLLM(_Sampling):
    """Reverse KL minimised on-policy by policy gradient (arXiv 2306.08543).

    Settings left out take the value of the recipe: see :data:`RECIPES` and docs/algorithm.md.
    """

    type: Literal["minillm"]
    recipe: Literal["default", "paper", "reference"] = "default"
    teacher_mix_alpha: Annotated[float, Real(ge=0, lt=1)] | None = None
    """Share of the teacher in the sampling distribution (paper section 2.2, teacher-mixed sampling)."""
    rollouts_per_round: Rows | None = None
    inner_epochs: Annotated[int, Whole(1, 64)] | None = None
    cliprange: Annotated[float, Real(gt=0, lt=1)] | None = None
    clip: Flag | None = None
    """Whether the surrogate is clipped at `1 +- cliprange`."""
    clip_sign: Literal["signed", "unsigned"] | None = None
    """Whether the clip heeds the advantage's sign, as in PPO, or takes the smaller ratio, as the paper writes it."""
    reward_scale: Annotated[float, Real(ge=1e-6, le=1e6)] | None = None
    """Rewards are divided by it, and stay far from what float32 cannot hold."""
    reward_clip: Annotated[float, Real(gt=0, le=1e6)] | Literal["off"] | None = None
    """Bound of a reward's absolute value, after the scale; `off` for none where the recipe has one."""
    reward_baseline: Annotated[float, Real(ge=-1e6, le=1e6)] | None = None
    """Taken from every reward-to-go; 1 gives the factor `R_t - 1` of the paper's undecomposed gradient."""
    reward_start: Literal["next", "current"] | None = None
    gamma: Share | None = None
    length_norm: Flag | None = None
    whitening: Literal["off", "masked", "padded"] | None = None
    long_part: Flag | None = None
    """Whether the policy-gradient part is in the loss; off leaves the single-step part alone."""
    single_step: Flag | None = None
    """Whether the exact single-step part is in the loss (paper equation 4)."""
    single_step_weighted: Flag | None = None
    """Whether the single-step part carries the importance weight, as in the paper's equation 7."""
    lm_coef: Annotated[float, Real(ge=0, le=1000)] | None = None
    kd_ratio: Share | None = None
    """Share of forward KL to the teacher within the pre-training loss."""

    def resolved(self) -> ResolvedMiniLLM:
        """The recipe's values with this method's own on top; nothing is left open."""
        given = self.model_dump(exclude_none=True, exclude={"type", "recipe"})
        if self.reward_clip == "off":
            given["reward_clip"] = None
        return ResolvedMiniLLM(recipe=self.recipe, **{**RECIPES[self.recipe], **given})


class ResolvedMiniLLM(Strict):
    """A :class:`MiniLLM` with every setting decided."""

    recipe: str
    temperature: float
    top_k: int
    top_p: float
    teacher_mix_alpha: float
    rollouts_per_round: int
    inner_epochs: int
    cliprange: float
    clip: bool
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
    lm_coef: float
    kd_ratio: float


_PAPER: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "teacher_mix_alpha": 0.2,
    "rollouts_per_round": 256,
    "inner_epochs": 4,
    "cliprange": 0.2,
    "clip": True,
    "clip_sign": "unsigned",
    "reward_scale": 1.0,
    "reward_clip": None,
    "reward_baseline": 0.0,
    "reward_start": "next",
    "gamma": 1.0,
    "length_norm": True,
    "whitening": "off",
    "long_part": True,
    "single_step": True,
    "single_step_weighted": True,
    "lm_coef": 1.0,
    "kd_ratio": 0.0,
}

RECIPES: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "default": {**_PAPER, "clip_sign": "signed", "whitening": "masked"},
    "reference": {
        **_PAPER,
        "clip_sign": "signed",
        "reward_scale": 0.5,
        "reward_clip": 100.0,
        "reward_start": "current",
        "gamma": 0.95,
        "whitening": "padded",
        "single_step_weighted": False,
        "kd_ratio": 0.5,
    },
}
"""What each recipe sets; the differences are those of the published code against the paper."""

Method = Annotated[SFT | KD | SeqKD | GKD | MiniLLM, Field(discriminator="type")]
