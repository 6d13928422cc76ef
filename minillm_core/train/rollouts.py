"""Fills a round: samples responses, scores them once, and turns them into rewards-to-go and weights.

Axes: B rows of this rank, T response positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minillm_core import minillm
from minillm_core.data.dataset import TokenizedRow
from minillm_core.rollout.decoder import Decoder
from minillm_core.rollout.sampling import Noise, RolloutCounters, Rollouts, sample
from minillm_core.train.distributed import Ranks
from minillm_core.train.guards import RoundHealth, repetition
from minillm_core.train.methods import Method
from minillm_core.train.rounds import Round, TrainRow, derived_seed, mask_of, owned_rows, pad_tokens

_LARGEST_LOG_RATIO = 80.0
_MEASURED_EVERY = 4
"""Positions between two whose log p is taken where only measurements need it."""


@dataclass(frozen=True)
class Sampling:
    """What every sampling of a run has in common."""

    eos_ids: Sequence[int]
    vocab: int
    max_new_tokens: int
    batch_rows: int


def draw(
    student: Decoder,
    teacher: Decoder | None,
    prompts: list[list[int]],
    rows: list[int],
    sampling: Sampling,
    *,
    alpha: float,
    temperature: float,
    seed: int,
    keep_teacher_hidden: bool = False,
    greedy: bool = False,
    teacher_logp_every: int = 1,
) -> Rollouts:
    """Sample one response a prompt. ``rows`` are the prompts' numbers in the whole round: the noise of a
    row hangs on its number and ``seed`` alone, so that the ranks' shares together are what one rank draws."""
    return sample(
        student,
        teacher,
        prompts,
        alpha=alpha,
        max_new_tokens=sampling.max_new_tokens,
        temperature=temperature,
        eos_ids=sampling.eos_ids,
        vocab=sampling.vocab,
        batch_rows=sampling.batch_rows,
        noise=Noise.of_rows(seed, rows, sampling.max_new_tokens),
        keep_teacher_hidden=keep_teacher_hidden,
        greedy=greedy,
        teacher_logp_every=teacher_logp_every,
    )


def collect_round(
    number: int,
    chosen: Sequence[TokenizedRow],
    method: Method,
    *,
    student: Decoder,
    teacher: Decoder,
    sampling: Sampling,
    rows_per_step: int,
    seed: int,
    ranks: Ranks,
) -> tuple[Round, RoundHealth, dict[str, float], RolloutCounters]:
    """Sample this rank's share of the round's rows and prepare them for its steps.

    ``chosen`` are the dataset rows of the whole round, alike on all ranks. Returns the round, its
    health and measurements over all ranks, and this rank's work.
    """
    own = owned_rows(len(chosen), rows_per_step, ranks.rank, ranks.world)
    random = np.random.Generator(np.random.PCG64(derived_seed(seed, "on_policy", number)))
    on_policy = random.random(len(chosen)) < method.on_policy
    sampled = [row for row in own if on_policy[row]]
    rollouts = draw(
        student,
        teacher,
        [chosen[row].prompt_ids for row in sampled],
        sampled,
        sampling,
        alpha=method.teacher_mix_alpha,
        temperature=method.temperature,
        seed=derived_seed(seed, "rollout", number),
        keep_teacher_hidden=True,
        teacher_logp_every=_logp_every(method),
    )
    assert rollouts.teacher_logp is not None and rollouts.teacher_hidden is not None
    rows: dict[int, TrainRow] = {}
    for index, row in enumerate(sampled):
        rows[row] = TrainRow(
            prompt_ids=rollouts.prompt_ids[index],
            response_ids=rollouts.response_ids[index],
            student_logp_T=rollouts.student_logp[index].float().cpu(),
            teacher_logp_T=rollouts.teacher_logp[index].float().cpu(),
            teacher_hidden_TD=rollouts.teacher_hidden[index],
        )
    _score(list(rows.values()), method)
    health, measured = _measure(list(rows.values()), rollouts.truncated, method, ranks)
    for row in own:
        if row not in rows:
            rows[row] = TrainRow(chosen[row].prompt_ids, chosen[row].response_ids)
    round_ = Round(
        number=number,
        rows=rows,
        total_rows=len(chosen),
        rows_per_step=rows_per_step,
        inner_epochs=method.inner_epochs,
        seed=derived_seed(seed, "order"),
    )
    return round_, health, measured, rollouts.counters


def _logp_every(method: Method) -> int:
    return 1 if method.uses_teacher_logp else _MEASURED_EVERY


def _score(rows: list[TrainRow], method: Method) -> None:
    """Give sampled rows their rewards-to-go and importance weights, where the method is MiniLLM."""
    if method.policy is None:
        return
    lengths = [len(row.response_ids) for row in rows]
    width = max(lengths, default=1)
    student_BT, teacher_BT = _logp_of(rows, width)
    returns_BT, weights_BT = minillm.returns_and_weights(student_BT, teacher_BT, mask_of(lengths, width), method.policy)
    for index, row in enumerate(rows):
        row.returns_T = returns_BT[index, : lengths[index]].clone()
        row.weights_T = weights_BT[index, : lengths[index]].clone()


def _logp_of(rows: list[TrainRow], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log q and log p of the sampled tokens, (B, ``width``) each, zero after a row's end."""
    student = [row.student_logp_T for row in rows if row.student_logp_T is not None]
    teacher = [row.teacher_logp_T for row in rows if row.teacher_logp_T is not None]
    assert len(student) == len(teacher) == len(rows), "sampled rows have both"
    return pad_tokens(student, width), pad_tokens(teacher, width)


def _measure(
    rows: list[TrainRow], truncated: list[bool], method: Method, ranks: Ranks
) -> tuple[RoundHealth, dict[str, float]]:
    """What a round's sampled rows look like, over all ranks."""
    lengths = [len(row.response_ids) for row in rows]
    width = max(lengths, default=1)
    mask_BT = mask_of(lengths, width)
    student_BT, teacher_BT = _logp_of(rows, width)
    if method.policy is None:
        weight = torch.ones(sum(lengths), dtype=torch.float64)
    else:
        weights = [row.weights_T for row in rows if row.weights_T is not None]
        weight = torch.cat([torch.zeros(0), *weights]).double()
    measured_BT = mask_BT & (torch.arange(width) % _logp_every(method) == 0)
    difference = (teacher_BT - student_BT)[measured_BT].double()
    repeated, grams = repetition([row.response_ids for row in rows])
    totals = ranks.sum(
        [
            float(len(rows)),
            float(sum(lengths)),
            float(difference.sum()),
            float(_k3(difference, method.teacher_mix_alpha).sum()),
            float(weight.sum()),
            float(weight.square().sum()),
            float(repeated),
            float(grams),
            float(sum(truncated)),
            float(len(difference)),
        ]
    )
    count, tokens, reward, k3, w1, w2, repeated_all, grams_all, cut, logp_tokens = totals
    tokens, logp_tokens = max(tokens, 1.0), max(logp_tokens, 1.0)
    health = RoundHealth(
        mean_length=tokens / max(count, 1.0),
        repetition=repeated_all / max(grams_all, 1.0),
        effective_sample_size=w1 * w1 / (tokens * w2) if w2 > 0 else 1.0,
        reverse_kl=k3 / logp_tokens,
    )
    measured = {
        "rollout_reward": reward / logp_tokens,
        "rollout_reverse_kl": health.reverse_kl,
        "response_tokens": health.mean_length,
        "repetition": health.repetition,
        "effective_sample_size": health.effective_sample_size,
        "importance_weight": w1 / tokens,
        "truncated_fraction": cut / max(count, 1.0),
    }
    return health, measured


def _k3(difference_N: torch.Tensor, alpha: float) -> torch.Tensor:
    """The k3 estimator of the reverse KL at each token, weighted back from the mixture to the student.

    With ``d = log p - log q`` it is ``w (exp(d) - 1 - d)``, never negative. For a token that the teacher
    drew and the student all but rules out, ``exp(d)`` is beyond any number and ``w`` near zero: their
    product is ``1 / alpha``, so both are formed from the same bounded ``d``.
    """
    bounded_N = difference_N.clamp_max(_LARGEST_LOG_RATIO)
    return (torch.expm1(bounded_N) - difference_N) / ((1.0 - alpha) + alpha * bounded_N.exp())
