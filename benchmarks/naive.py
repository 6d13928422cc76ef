"""A MiniLLM round as one writes it down first, for ``benchmarks.round`` to compare with.

Both models take every token of the mixture; the responses are scored anew, twice by each model (for
the rewards and the ratio, and for the importance weights), and the teacher runs again over the rows
in every inner epoch. Models are those of transformers, rows are padded, logits are whole.

Axes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from minillm_core.models.families import position_ids_from_mask
from minillm_core.objectives.policy_gradient import importance_weights, rewards_to_go, token_rewards, whiten


@dataclass
class Counts:
    """Positions computed, padding left out, and passes of one token each."""

    teacher_tokens: int = 0
    student_tokens: int = 0
    teacher_decode_steps: int = 0
    student_decode_steps: int = 0


def pad(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (B, T)."""
    width = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BT[index, place] = torch.tensor(row)
        mask_BT[index, place] = 1
    return ids_BT, mask_BT


@torch.no_grad()
def sample(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: list[list[int]],
    *,
    alpha: float,
    new_tokens: int,
    generator: torch.Generator,
    counts: Counts,
) -> torch.Tensor:
    """(B, new_tokens) drawn from (1 - alpha) q + alpha p, both models at every token; no token ends a response."""
    ids_BT, mask_BT = pad(prompts, left=True)
    positions_BT = position_ids_from_mask(mask_BT)
    caches = [None, None]
    drawn: list[torch.Tensor] = []
    for step in range(new_tokens):
        law_BV: torch.Tensor | None = None
        for index, (model, share) in enumerate(((student, 1.0 - alpha), (teacher, alpha))):
            output = model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=caches[index],
                use_cache=True,
                logits_to_keep=1,
            )
            caches[index] = output.past_key_values
            part_BV = share * output.logits[:, -1].softmax(dim=-1)
            law_BV = part_BV if law_BV is None else law_BV + part_BV
        assert law_BV is not None
        tokens = int(mask_BT.sum()) if step == 0 else len(prompts)
        counts.student_tokens += tokens
        counts.teacher_tokens += tokens
        counts.student_decode_steps += step > 0
        counts.teacher_decode_steps += step > 0
        ids_BT = torch.multinomial(law_BV, 1, generator=generator)
        drawn.append(ids_BT)
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1
    return torch.cat(drawn, dim=1)


@dataclass
class Rows:
    """Rows padded on the left, so that all responses lie in the last columns."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    responses_BT: torch.Tensor

    def part(self, index: torch.Tensor) -> Rows:
        return Rows(self.ids_BT[index], self.mask_BT[index], self.responses_BT[index])


def response_logits(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Logits (B, T, V) that predict the response tokens, of whole rows."""
    output = model(
        input_ids=rows.ids_BT,
        attention_mask=rows.mask_BT,
        position_ids=position_ids_from_mask(rows.mask_BT),
        use_cache=False,
        logits_to_keep=rows.responses_BT.shape[1] + 1,
    )
    logits_BTV: torch.Tensor = output.logits[:, :-1]
    return logits_BTV


def logp_of(logits_BTV: torch.Tensor, rows: Rows) -> torch.Tensor:
    """(B, T)."""
    return logits_BTV.log_softmax(dim=-1).gather(2, rows.responses_BT.unsqueeze(2)).squeeze(2)


@torch.no_grad()
def score(model: PreTrainedModel, rows: Rows, batch_rows: int) -> torch.Tensor:
    """log-probability (B, T) of every response token, from scratch."""
    parts = torch.arange(len(rows.ids_BT)).split(batch_rows)
    return torch.cat([logp_of(response_logits(model, rows.part(part)), rows.part(part)) for part in parts])


def play_round(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    prompts: list[list[int]],
    *,
    alpha: float,
    new_tokens: int,
    rows_per_step: int,
    inner_epochs: int,
    cliprange: float,
    seed: int,
) -> Counts:
    """Sample, score and train as the paper's equation 7 says; every model pass anew wherever a value is used."""
    counts = Counts()
    responses_BT = sample(
        student,
        teacher,
        prompts,
        alpha=alpha,
        new_tokens=new_tokens,
        generator=torch.Generator().manual_seed(seed),
        counts=counts,
    )
    whole = [[*prompt, *response] for prompt, response in zip(prompts, responses_BT.tolist(), strict=True)]
    rows = Rows(*pad(whole, left=True), responses_BT)
    tokens = int(rows.mask_BT.sum())
    for_reward_BT = [score(model, rows, rows_per_step) for model in (teacher, student)]
    for_weights_BT = [score(model, rows, rows_per_step) for model in (teacher, student)]
    counts.teacher_tokens += 2 * tokens
    counts.student_tokens += 2 * tokens
    mask_BT = torch.ones_like(responses_BT, dtype=torch.bool)
    returns_BT = rewards_to_go(token_rewards(*for_reward_BT, mask_BT), mask_BT)
    weights_BT = importance_weights(for_weights_BT[1], for_weights_BT[0], alpha=alpha)
    order = torch.Generator().manual_seed(seed)
    for _ in range(inner_epochs):
        for index in torch.randperm(len(prompts), generator=order).split(rows_per_step):
            part, weight_BT = rows.part(index), weights_BT[index]
            logits_BTV = response_logits(student, part)
            with torch.no_grad():
                teacher_logp_BTV = response_logits(teacher, part).log_softmax(dim=-1)
            part_tokens = int(part.mask_BT.sum())
            counts.student_tokens += part_tokens
            counts.teacher_tokens += part_tokens
            logq_BTV = logits_BTV.log_softmax(dim=-1)
            single_BT = (logq_BTV.exp() * (logq_BTV - teacher_logp_BTV)).sum(dim=-1)
            advantage_BT = whiten(returns_BT[index], mask_BT[index], mode="masked")
            logp_BT = logq_BTV.gather(2, part.responses_BT.unsqueeze(2)).squeeze(2)
            ratio_BT = (logp_BT - for_reward_BT[1][index]).exp() * weight_BT
            clipped_BT = ratio_BT.clamp(1.0 - cliprange, 1.0 + cliprange)
            long_BT = torch.maximum(-advantage_BT * ratio_BT, -advantage_BT * clipped_BT)
            loss = (weight_BT * single_BT + long_BT).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return counts
