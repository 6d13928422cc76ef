"""One forward pass of the student and the loss on it: the module that DeepSpeed wraps.

The decoder runs over rows that stand one behind the other; only the hidden states that predict a
counted token reach the head, and the chunked losses never hold more than a chunk of logits.

Axes: M tokens of the micro-batch, all rows joined, N of them that count, D hidden width of the model named.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import deepspeed
import torch
from torch import nn

from minillm_core import minillm
from minillm_core.models.families import OutputHead, output_head, unwrapped
from minillm_core.models.fast_layers import add_embedding_gradients_in_place, use_fast_layers
from minillm_core.models.last_layer import end_with_chosen_tokens
from minillm_core.models.packed import PackedRows, joined_hidden_states
from minillm_core.models.saved_norms import NormsComputedAgain
from minillm_core.objectives.chunked import Head, cross_entropy_from_hidden
from minillm_core.spec import ResolvedMiniLLM
from minillm_core.train.methods import Method
from minillm_core.train.stopwatch import Stopwatch


def loss_head(head: OutputHead, vocab: int) -> Head:
    """An output head as the losses take it, cut to the shared real vocabulary."""
    return Head(weight_VD=head.weight_VD, bias_V=head.bias_V, softcap=head.softcap, vocab=vocab)


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass. Without counted tokens (N = 0) it keeps a rank in step with the others."""

    input_ids_M: torch.Tensor
    rows: PackedRows
    select_N: torch.Tensor
    """Places among the joined tokens whose hidden state predicts a counted token."""
    targets_N: torch.Tensor
    teacher_hidden_ND: torch.Tensor | None = None
    old_logp_N: torch.Tensor | None = None
    advantages_N: torch.Tensor | None = None
    weights_N: torch.Tensor | None = None
    corpus: bool = False
    """Whether the rows are blocks of the pre-training corpus."""

    @property
    def tokens(self) -> int:
        return int(self.targets_N.numel())


STATISTICS = ("cross_entropy", "divergence", "long", "single_step", "reverse_kl", "clipped", "entropy")
"""Sums over the tokens of a micro-batch that :meth:`StudentModule.forward` returns, in this order."""


class StudentModule(nn.Module):
    """``forward(micro_batch, method) -> (loss, statistics)``: sums over tokens, divided by nobody yet."""

    def __init__(self, model: nn.Module, *, vocab: int, teacher_head: Head | None, zero_stage: int) -> None:
        super().__init__()
        self.model = model
        self.stopwatch = Stopwatch()
        self._vocab = vocab
        self._adds_gradient = False
        # A tuple keeps the teacher's weight out of this module's parameters.
        self._teacher_head = (teacher_head,)
        end_with_chosen_tokens(model)
        self._fast_layers = zero_stage < 3 and use_fast_layers(model) > 0
        if zero_stage >= 3:
            # The head's weight is used outside of its own module's forward, where ZeRO-3 would not gather it.
            head = unwrapped(model).get_output_embeddings()
            for parameter in head.parameters():
                deepspeed.zero.register_external_parameter(self, parameter)

    def add_gradients_in_place(self) -> None:
        """Save the tables that autograd would make for the gradients of embedding and head.

        For an engine that reads gradients from ``.grad`` once the whole backward pass is over.
        """
        self._adds_gradient = True
        add_embedding_gradients_in_place(self.model)

    def hidden(self, batch: MicroBatch) -> torch.Tensor:
        """Hidden states (N, D) that predict the counted tokens."""
        again = self._fast_layers and batch.input_ids_M.device.type == "cpu"
        with NormsComputedAgain() if again else nullcontext():
            return joined_hidden_states(self.model, batch.input_ids_M, batch.rows, batch.select_N)

    def forward(self, batch: MicroBatch, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
        with self.stopwatch.timed("student_forward"):
            hidden_ND = self.hidden(batch)
        with self.stopwatch.timed("loss"):
            return self._loss(hidden_ND, batch, method)

    def _loss(self, hidden_ND: torch.Tensor, batch: MicroBatch, method: Method) -> tuple[torch.Tensor, torch.Tensor]:
        head = replace(loss_head(output_head(self.model), self._vocab), adds_gradient=self._adds_gradient)
        if method.policy is not None and not batch.corpus:
            return self._minillm(hidden_ND, head, batch, method.policy)
        kd_ratio = method.lm_kd_ratio if batch.corpus else method.divergence_weight
        kind = ("forward_kl" if kd_ratio > 0 else None) if batch.corpus else method.divergence
        params = {} if batch.corpus else method.divergence_params
        terms = cross_entropy_from_hidden(
            hidden_ND,
            head,
            batch.targets_N,
            cross_entropy_weight=1.0 - kd_ratio if batch.corpus else method.cross_entropy,
            divergence=kind,
            divergence_weight=kd_ratio,
            teacher_hidden_ND=batch.teacher_hidden_ND,
            teacher_head=self._teacher_head[0],
            temperature=1.0 if batch.corpus else method.temperature,
            chunk_tokens=None,
            **params,
        )
        return terms.total, _statistics(cross_entropy=terms.cross_entropy, divergence=terms.divergence)

    def _minillm(
        self, hidden_ND: torch.Tensor, head: Head, batch: MicroBatch, settings: ResolvedMiniLLM
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert batch.old_logp_N is not None and batch.advantages_N is not None and batch.weights_N is not None
        terms = minillm.loss(
            hidden_ND,
            head,
            batch.targets_N,
            settings,
            teacher_hidden_ND=batch.teacher_hidden_ND,
            teacher_head=self._teacher_head[0],
            old_logp_N=batch.old_logp_N,
            advantages_N=batch.advantages_N,
            weights_N=batch.weights_N,
        )
        return terms.total, _statistics(
            long=terms.long,
            single_step=terms.single_step,
            reverse_kl=terms.reverse_kl,
            clipped=terms.clipped,
            entropy=terms.entropy,
        )


def _statistics(**sums: torch.Tensor) -> torch.Tensor:
    """The sums in the order of :data:`STATISTICS`, zero where the loss has no such term; float32."""
    zero = next(iter(sums.values())).new_zeros((), dtype=torch.float32)
    return torch.stack([sums.get(name, zero).detach().float().reshape(()) for name in STATISTICS])
