"""A job's method as data: every setting arrives, under the name that the loop knows it by."""

from __future__ import annotations

from typing import Any

from minillm_core.spec import RECIPES, JobSpec
from minillm_core.train.methods import Method, resolve_method
from tests.minillm_core.tiny_runs import tiny_spec

ODD: dict[str, Any] = {
    "temperature": 1.7,
    "teacher_mix_alpha": 0.35,
    "rollouts_per_round": 24,
    "inner_epochs": 3,
    "cliprange": 0.15,
    "clip_sign": "unsigned",
    "reward_scale": 0.25,
    "reward_clip": 7.0,
    "reward_baseline": 0.5,
    "reward_start": "current",
    "gamma": 0.9,
    "length_norm": False,
    "whitening": "padded",
    "long_part": False,
    "single_step": False,
    "single_step_weighted": False,
    "lm_coef": 0.6,
    "kd_ratio": 0.4,
}
"""A value that no recipe has, or not the default's, for every setting of MiniLLM."""
IN_OTHER_WORDS = {"top_k", "top_p", "clip"}
"""Off in every job, and the clip's switch, which the next test has."""


def method_of(**settings: Any) -> Method:
    return resolve_method(JobSpec.model_validate(tiny_spec(method=settings)))


def test_every_setting_of_minillm_arrives():
    assert ODD.keys() | IN_OTHER_WORDS == RECIPES["default"].keys()
    method = method_of(type="minillm", **ODD)
    assert method.policy is not None
    arrived = method.policy.model_dump() | vars(method)
    for name, value in ODD.items():
        assert value != RECIPES["default"][name]
        assert arrived[name] == value, name
    assert (method.responses, method.on_policy) == ("rollout", 1.0)
    assert (method.cross_entropy, method.divergence) == (0.0, None)


def test_the_baselines():
    """Of a job with eight rows a step: where the responses come from, and the terms of the loss with their factors."""
    given = {"temperature": 1.7, "divergence": "jsd", "jsd_beta": 0.2, "skew_alpha": 0.4}
    ratio = {"kd_ratio": 0.3}
    jsd = {"divergence": "jsd", "divergence_params": {"beta": 0.2}, "temperature": 1.7}
    skewed = {"divergence": "skew_forward_kl", "divergence_params": {"alpha": 0.4}, "temperature": 1.7}
    common = {"rollouts_per_round": 8, "inner_epochs": 1}
    word_level = {"cross_entropy": 0.7, "divergence_weight": 0.3}
    assert method_of(type="sft") == Method(name="sft", responses="dataset", cross_entropy=1.0, **common)
    assert method_of(type="kd", **given, **ratio) == Method(
        name="kd", responses="dataset", **word_level, **jsd, **common
    )
    assert method_of(type="seqkd", temperature=1.7, **ratio) == Method(
        name="seqkd", responses="teacher", temperature=1.7, divergence="forward_kl", **word_level, **common
    )
    pure = method_of(type="seqkd")
    assert (pure.cross_entropy, pure.divergence, pure.needs_teacher) == (1.0, None, False)
    fraction = {"on_policy_fraction": 0.25, "rollouts_per_round": 16}
    assert method_of(type="gkd", **{**given, "divergence": "skew_forward_kl"}, **fraction) == Method(
        name="gkd",
        responses="rollout",
        on_policy=0.25,
        divergence_weight=1.0,
        **skewed,
        **{**common, "rollouts_per_round": 16},
    )
    assert method_of(type="gkd").rollouts_per_round == 8
