"""One optimizer step over the rows of all ranks.

Axes: B rows, T response positions, N counted tokens of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minillm_core import minillm
from minillm_core.rollout.decoder import Decoder
from minillm_core.train.batches import corpus_batch, idle_batch, plan, response_batch
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import Engine
from minillm_core.train.methods import Method
from minillm_core.train.rounds import TrainRow, mask_of, pad_tokens
from minillm_core.train.student import STATISTICS, MicroBatch


@dataclass(frozen=True)
class StepResult:
    metrics: dict[str, float]
    tokens: float
    """Prompt, response and corpus tokens of all ranks."""
    seconds: dict[str, float]
    """This rank's, by part: :data:`~minillm_core.train.stopwatch.STEP_PARTS`."""


def train_step(
    engine: Engine,
    rows: Sequence[TrainRow],
    blocks_BT: torch.Tensor | None,
    method: Method,
    teacher: Decoder | None,
    *,
    learning_rate: float,
    micro_batch_tokens: int,
    response_width: int,
    pad_id: int,
    ranks: Ranks,
) -> StepResult | None:
    """Accumulate the gradient over this rank's micro-batches and apply it.

    Losses are sums over tokens divided by the number of tokens of all ranks, once, here: the
    result does not depend on the split into micro-batches or ranks. Returns None when the loss, with
    nothing applied, or the gradient is not finite on some rank: the engine is then of no more use.
    """
    corpus_tokens = 0 if blocks_BT is None else blocks_BT.shape[0] * (blocks_BT.shape[1] - 1)
    response_tokens = sum(len(row.response_ids) for row in rows)
    total_tokens = sum(row.length for row in rows) + (0 if blocks_BT is None else blocks_BT.numel())
    counted, corpus_counted, tokens = ranks.sum([response_tokens, corpus_tokens, total_tokens])
    advantages = _advantages(rows, method, response_width, ranks)

    makers = _micro_batches(rows, advantages, blocks_BT, method, teacher, micro_batch_tokens, ranks)
    passes = int(ranks.max(float(len(makers))))
    stopwatch = engine.module.stopwatch
    sums = torch.zeros(2, len(STATISTICS), dtype=torch.float64)
    loss_sum = 0.0
    for index in range(passes):
        batch = makers[index]() if index < len(makers) else _idle(method, teacher, pad_id, ranks)
        loss, statistics = engine(batch, method)
        scaled = loss * (method.lm_coef / corpus_counted if batch.corpus else 1.0 / max(counted, 1.0))
        with stopwatch.timed("backward"):
            engine.backward(scaled, last=index == passes - 1)
        loss_sum += float(scaled.detach())
        sums[int(batch.corpus)] += statistics.double().cpu()
    if ranks.max(0.0 if math.isfinite(loss_sum) else 1.0) > 0:
        return None
    with stopwatch.timed("optimizer"):
        norm = engine.step(learning_rate)
    totals = ranks.sum([loss_sum, *sums.flatten().tolist()])
    if ranks.max(0.0 if norm is None or math.isfinite(norm) else 1.0) > 0:
        return None
    metrics = _metrics(totals, counted, corpus_counted, method)
    if norm is not None:
        metrics["grad_norm"] = norm
    return StepResult(metrics, tokens, stopwatch.take())


def _advantages(rows: Sequence[TrainRow], method: Method, width: int, ranks: Ranks) -> list[torch.Tensor] | None:
    """Those of the step's rows of all ranks, one (T_i,) tensor a row; None where the method has none."""
    if method.policy is None:
        return None
    lengths = [len(row.response_ids) for row in rows]
    returns_BT = pad_tokens([row.returns_T for row in rows], width)  # type: ignore[misc]
    mask_BT = mask_of(lengths, width)
    advantages_BT = minillm.advantages(returns_BT, mask_BT, method.policy, all_reduce=ranks.reduce)
    return [advantages_BT[index, :length] for index, length in enumerate(lengths)]


def _micro_batches(
    rows: Sequence[TrainRow],
    advantages: list[torch.Tensor] | None,
    blocks_BT: torch.Tensor | None,
    method: Method,
    teacher: Decoder | None,
    budget: int,
    ranks: Ranks,
) -> list[Callable[[], MicroBatch]]:
    """Functions that make one micro-batch each, so that only one is held at a time."""
    makers: list[Callable[[], MicroBatch]] = []
    for numbers in plan(rows, budget):

        def make(numbers: list[int] = numbers) -> MicroBatch:
            chosen = [rows[number] for number in numbers]
            advantage = None if advantages is None else [advantages[number] for number in numbers]
            scored = teacher if method.divergence is not None else None
            return response_batch(chosen, advantage, scored, device=ranks.device)

        makers.append(make)
    if blocks_BT is not None:
        for part_BT in blocks_BT.split(max(1, budget // blocks_BT.shape[1])):

            def make_corpus(part_BT: torch.Tensor = part_BT) -> MicroBatch:
                return corpus_batch(part_BT, teacher if method.lm_kd_ratio > 0 else None, device=ranks.device)

            makers.append(make_corpus)
    return makers


def _idle(method: Method, teacher: Decoder | None, pad_id: int, ranks: Ranks) -> MicroBatch:
    uses_teacher = method.policy is not None or method.divergence is not None
    width = teacher.hidden_size if uses_teacher and teacher is not None else None
    return idle_batch(pad_id, width, policy=method.policy is not None, device=ranks.device)


def _metrics(totals: list[float], counted: float, corpus_counted: float, method: Method) -> dict[str, float]:
    """Means per token, of the terms that the method has."""
    loss, values = totals[0], totals[1:]
    response = dict(zip(STATISTICS, values[: len(STATISTICS)], strict=True))
    corpus = dict(zip(STATISTICS, values[len(STATISTICS) :], strict=True))
    mean = {name: value / max(counted, 1.0) for name, value in response.items()}
    metrics = {"loss": loss}
    if method.policy is not None:
        metrics |= {
            "long_loss": mean["long"],
            "single_step_loss": mean["single_step"],
            "reverse_kl": mean["reverse_kl"],
            "clip_fraction": mean["clipped"],
            "entropy": mean["entropy"],
        }
    if method.cross_entropy > 0:
        metrics["cross_entropy"] = mean["cross_entropy"]
    if method.divergence is not None:
        metrics["divergence"] = mean["divergence"]
        if method.divergence == "reverse_kl":
            metrics["reverse_kl"] = mean["divergence"]
    if corpus_counted > 0:
        metrics["corpus_loss"] = corpus["cross_entropy"] / corpus_counted
    return metrics
