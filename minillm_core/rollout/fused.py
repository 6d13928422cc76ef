"""A decoder for the LLaMA-shaped families: llama, mistral, qwen2, qwen3.

Those share one layer: RMS norm, attention with rotary positions over grouped heads, RMS norm, gated
SiLU. It is written out here with one product for query, key and value, activations and residuals
fused into the products (:mod:`minillm_core.rollout.projection`), a cache written in place, and one
pass over joined tokens wherever rows have unequal lengths.

Rotary positions: rotating the pair (i, i + d/2) of a head is the product of a complex number with
exp(i * angle). The rows of the query and key weights are reordered once so that the pairs lie side
by side; dot products of queries with keys do not notice.

Axes: N tokens, B rows, K new columns, W columns of the cache, D hidden width, H heads (G query heads
share one of R key-value heads), d width of a head, V vocabulary, P positions.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from minillm_core.models.families import OutputHead, base_model, context_length, unwrapped
from minillm_core.native import ops
from minillm_core.objectives.products import padded_tokens
from minillm_core.rollout.attention import Attend, HeadNorms, HeadShape, KernelAttention, Piece, TorchAttention
from minillm_core.rollout.cache import KeyValues
from minillm_core.rollout.columns import Columns, padded_width
from minillm_core.rollout.packing import padded, row_slices
from minillm_core.rollout.projection import Projection, project, widens
from minillm_core.rollout.weights import effective_weights

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")
_CHUNK_TOKENS = 2048
"""Tokens of one pass: enough for full speed, few enough that the temporaries stay in the allocator."""


def fusible(model: nn.Module) -> bool:
    """Whether :class:`FusedDecoder` computes what ``model`` computes."""
    config = unwrapped(model).config
    if config.model_type not in FUSED_FAMILIES or config.hidden_act != "silu":
        return False
    rotary: Any = base_model(model).rotary_emb
    head_width = _head_width(config)
    return bool(
        getattr(rotary, "rope_type", None) in _STATIC_ROPES
        and rotary.inv_freq.shape[0] * 2 == head_width
        and head_width % 2 == 0
    )


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _windows(config: Any) -> list[int | None]:
    """Sliding window of each layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types[: config.num_hidden_layers]]


@dataclass
class _Layer:
    norm_in_D: torch.Tensor
    qkv: Projection
    head_norms: HeadNorms
    out: Projection
    norm_mid_D: torch.Tensor
    gate: Projection
    up: Projection
    down: Projection


class FusedDecoder:
    """See :class:`minillm_core.rollout.decoder.Decoder`."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, context: int | None, *, scores: bool) -> None:
        config = unwrapped(model).config
        self.context = context or context_length(config)
        self.hidden_size = int(config.hidden_size)
        self._half = not scores and widens(dtype, next(model.parameters()).device)
        self.dtype = torch.float32 if self._half else dtype
        self.positions = 0
        self._shape = HeadShape(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            width=_head_width(config),
            eps=config.rms_norm_eps,
            windows=_windows(config),
        )
        self._rotary: Any = copy.deepcopy(base_model(model).rotary_emb)
        self._scores = scores
        self._load(model)
        self.device = self._embedding_VD.device
        self._kernels = ops.fits(self._norm_out_D, half=True)
        norms = [layer.head_norms for layer in self._layers]
        if self._kernels:
            self._attention: TorchAttention = KernelAttention(self._shape, norms, self.dtype)
        else:
            # On a CPU attention over few queries is faster in float32, and exact, whatever format the weights have.
            self._attention = TorchAttention(self._shape, norms, torch.float32 if self.device.type == "cpu" else dtype)
        width = self._shape.width
        self._table_P = torch.empty(0, width // 2, dtype=torch.complex64, device=self.device)
        self._cache = KeyValues(len(self._layers), self._shape.kv_heads, width, self.device, self._attention.dtype)
        self._columns: Columns | None = None

    # -- weights --------------------------------------------------------------------------------

    @torch.no_grad()
    def _load(self, model: PreTrainedModel) -> None:
        weights = effective_weights(model)
        embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
        # Tables are shared with the model, whatever its format, unless they are partitioned and gone after the call. A
        # teacher's are wanted in its own format again and again.
        partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        if partitioned or self._scores:
            tied = head.data_ptr() == embedding.data_ptr()
            embedding = embedding.to(self.dtype, copy=partitioned)
            head = embedding if tied else head.to(self.dtype, copy=partitioned)
        self._embedding_VD, self._head_VD = embedding, head
        self.vocab = int(head.shape[0])
        # The loss reads a teacher's head as it is: a packed copy would be a second one.
        shared = self._scores and head.dtype == torch.float32
        self._head = Projection(head, None) if shared else project(head, dtype=self.dtype, half=self._half)
        self._norm_out_D = weights["model.norm.weight"].to(self.dtype, copy=True)
        pairs = torch.arange(self._shape.width).view(2, -1).t().reshape(-1)
        self._layers = [self._layer(weights, index, pairs) for index in range(len(self._shape.windows))]

    def _layer(self, weights: dict[str, torch.Tensor], index: int, pairs: torch.Tensor) -> _Layer:
        """A layer's weights, merged and reordered, in the decoding format; copies where they are packed or merged."""
        prefix = f"model.layers.{index}."

        def paired(name: str) -> torch.Tensor | None:
            tensor = weights.get(prefix + name)
            if tensor is None:
                return None
            return tensor.unflatten(0, (-1, self._shape.width))[:, pairs.to(tensor.device)].flatten(0, 1)

        def merged(kind: str) -> torch.Tensor | None:
            parts = [paired(f"self_attn.q_proj.{kind}"), paired(f"self_attn.k_proj.{kind}")]
            parts.append(weights.get(f"{prefix}self_attn.v_proj.{kind}"))
            return None if parts[0] is None else torch.cat([part for part in parts if part is not None])

        def form(weight: torch.Tensor, bias: torch.Tensor | None) -> Projection:
            return project(weight, bias, dtype=self.dtype, half=self._half, many_tokens=self._scores)

        def own(name: str) -> Projection:
            return form(weights[f"{prefix}{name}.weight"], weights.get(f"{prefix}{name}.bias"))

        def norm(name: str) -> torch.Tensor:
            return weights[f"{prefix}{name}.weight"].to(self.dtype, copy=True)

        def head_norm(name: str) -> torch.Tensor | None:
            tensor = paired(f"self_attn.{name}.weight")
            return None if tensor is None else tensor.to(self.dtype)

        qkv = merged("weight")
        assert qkv is not None
        return _Layer(
            norm_in_D=norm("input_layernorm"),
            qkv=form(qkv, merged("bias")),
            head_norms=(head_norm("q_norm"), head_norm("k_norm")),
            out=own("self_attn.o_proj"),
            norm_mid_D=norm("post_attention_layernorm"),
            gate=own("mlp.gate_proj"),
            up=own("mlp.up_proj"),
            down=own("mlp.down_proj"),
        )

    # -- the network ----------------------------------------------------------------------------

    def _angles(self, positions: int) -> None:
        """Rotations exp(i * angle) of the first positions, as the family defines them."""
        if self._table_P.shape[0] >= positions:
            return
        probe = torch.empty(1, 1, 1, dtype=torch.float32, device=self.device)
        cos, sin = self._rotary(probe, torch.arange(padded_width(positions), device=self.device).unsqueeze(0))
        half = self._shape.width // 2
        self._table_P = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())

    def _run(self, tokens_N: torch.Tensor, attend: Attend, chosen_C: torch.Tensor | None = None) -> torch.Tensor:
        """Final hidden states (N, D), norm applied; those of the ``chosen`` tokens alone where given (their places)."""
        tokens = tokens_N.shape[0]
        extra = self._extra(tokens)
        self.positions += tokens
        x_ND = self._embedding_VD[nn.functional.pad(tokens_N, (0, extra))].to(self.dtype)
        for index, layer in enumerate(self._layers):
            qkv_NHd = layer.qkv(self._norm(x_ND, layer.norm_in_D)).unflatten(1, (-1, self._shape.width))
            mixed_ND = attend(index, qkv_NHd[:tokens]).to(self.dtype)
            if chosen_C is not None and index + 1 == len(self._layers):
                # What follows the last attention is of no use to other tokens.
                mixed_ND, x_ND = mixed_ND.index_select(0, chosen_C), x_ND.index_select(0, chosen_C)
                tokens = chosen_C.shape[0]
                extra = self._extra(tokens)
                x_ND = nn.functional.pad(x_ND, (0, 0, 0, extra))
            x_ND = layer.out.plus(nn.functional.pad(mixed_ND, (0, 0, 0, extra)) if extra else mixed_ND, x_ND)
            normed_ND = self._norm(x_ND, layer.norm_mid_D)
            x_ND = layer.down.plus(layer.gate.gated(normed_ND, layer.up), x_ND)
        return self._norm(x_ND[:tokens], self._norm_out_D)

    def _extra(self, tokens: int) -> int:
        """Tokens to fill up with, which nobody reads."""
        return padded_tokens(tokens, self.dtype, self.device) - tokens if self._layers[0].qkv.makes_code else 0

    def _norm(self, x_ND: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        if self._kernels:
            return ops.norm(x_ND, weight_D, self._shape.eps)[0]
        return nn.functional.rms_norm(x_ND, (self.hidden_size,), weight_D, self._shape.eps)

    @property
    def head(self) -> OutputHead:
        return OutputHead(self._head_VD.to(self.dtype), None, None)

    def logits(self, hidden_ND: torch.Tensor, vocab: int) -> torch.Tensor:
        return self._head(hidden_ND)[..., :vocab]

    # -- decoding -------------------------------------------------------------------------------

    def start(self, rows: int, columns: int) -> None:
        self._angles(columns)
        self._columns = Columns(rows, columns, self._attention.biased_windows, self.device, self._attention.dtype)
        self._cache.start(rows, self._columns.width)

    @property
    def _batch(self) -> Columns:
        if self._columns is None:
            raise RuntimeError("start() comes first")
        return self._columns

    @torch.no_grad()
    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        batch = self._batch
        width = batch.open_step()
        hidden_BD = self._run(tokens_B, self._attention.step(batch, self._cache, self._table_P, width))
        batch.close_step()
        return hidden_BD

    @torch.no_grad()
    def chunk(self, tokens_BK: torch.Tensor, first: Sequence[int], stop: Sequence[int]) -> torch.Tensor:
        batch = self._batch
        if batch.count == 0:
            batch.take_padding(first)
        rows, columns = tokens_BK.shape
        hidden_BKD = torch.zeros(rows, columns, self.hidden_size, dtype=self.dtype, device=self.device)
        lengths = [max(0, end - begin) for begin, end in zip(first, stop, strict=True)]
        for begin, end in row_slices(lengths, _CHUNK_TOKENS):
            piece = Piece(begin, end, columns, first[begin:end], stop[begin:end], self.device)
            tokens_N = tokens_BK[begin:end].flatten()[piece.index_N]
            attend = self._attention.chunk(batch, self._cache, self._table_P, piece)
            hidden_BKD[begin:end].flatten(0, 1).index_copy_(0, piece.index_N, self._run(tokens_N, attend))
        batch.close_chunk(columns)
        return hidden_BKD

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> list[torch.Tensor]:
        self._angles(max(map(len, sequences)))
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        hidden: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        for begin, end in row_slices([len(sequences[row]) for row in order], _CHUNK_TOKENS):
            rows = [sequences[row] for row in order[begin:end]]
            lengths = [len(row) for row in rows]
            piece = Piece(0, len(rows), max(lengths), [0] * len(rows), lengths, self.device)
            tokens_N = padded(rows, self.device, left=False).flatten()[piece.index_N]
            starts = [first[row] for row in order[begin:end]]
            spans = list(zip(itertools.accumulate(lengths, initial=0), starts, lengths, strict=False))
            runs = [torch.arange(offset + start, offset + length) for offset, start, length in spans]
            chosen_C = torch.cat(runs).to(self.device, non_blocking=True)
            hidden_CD = self._run(tokens_N, self._attention.alone(self._table_P, piece), chosen_C)
            for row, part in zip(order[begin:end], hidden_CD.split([len(run) for run in runs]), strict=True):
                hidden[row] = part
        return hidden

    def retire(self, keep: torch.Tensor) -> None:
        self._batch.retire(keep)
        self._cache.retire(keep)

    def release(self) -> None:
        self._columns = None
        self._cache.release()
