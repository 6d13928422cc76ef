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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from minillm_core.models.families import OutputHead, base_model, context_length, unwrapped
from minillm_core.rollout.cache import KeyValues
from minillm_core.rollout.columns import Columns, padded_width
from minillm_core.rollout.packing import packed_index, padded, row_slices
from minillm_core.rollout.projection import Projection
from minillm_core.rollout.weights import effective_weights

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")
_CHUNK_TOKENS = 2048
"""Tokens of one pass: enough for full speed, few enough that the temporaries stay in the allocator."""

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


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
    q_norm_d: torch.Tensor | None
    k_norm_d: torch.Tensor | None
    out: Projection
    norm_mid_D: torch.Tensor
    gate: Projection
    up: Projection
    down: Projection
    window: int | None


class FusedDecoder:
    """See :class:`minillm_core.rollout.decoder.Decoder`."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, context: int | None, *, scores: bool) -> None:
        config = unwrapped(model).config
        self.context = context or context_length(config)
        self.hidden_size = int(config.hidden_size)
        self.dtype = dtype
        self.positions = 0
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._group = self._heads // self._kv_heads
        self._head_width = _head_width(config)
        self._eps: float = config.rms_norm_eps
        self._qk_norm = config.model_type == "qwen3"
        self._window_of = _windows(config)
        self._rotary: Any = copy.deepcopy(base_model(model).rotary_emb)
        self._scores = scores
        self._load(model)
        self.device = self._embedding_VD.device
        # On a CPU attention over few queries is faster in float32, and exact, whatever format the weights have.
        self._attention_dtype = torch.float32 if self.device.type == "cpu" else dtype
        self._table_P = torch.empty(0, self._head_width // 2, dtype=torch.complex64, device=self.device)
        self._cache = KeyValues(len(self._layers), self._kv_heads, self._head_width, self.device, self._attention_dtype)
        self._columns: Columns | None = None

    # -- weights --------------------------------------------------------------------------------

    @torch.no_grad()
    def _load(self, model: PreTrainedModel) -> None:
        weights = effective_weights(model)
        embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
        # Whole tables of the right format are shared, not copied; partitioned ones are gone after the call.
        copy_tables = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        self._embedding_VD = embedding.to(self.dtype, copy=copy_tables)
        tied = head.data_ptr() == embedding.data_ptr()
        head_VD = self._embedding_VD if tied else head.to(self.dtype, copy=copy_tables)
        self.head = OutputHead(head_VD, None, None, None)
        self._head = Projection(head_VD, many_tokens=self._scores)
        self._norm_out_D = weights["model.norm.weight"].to(self.dtype, copy=True)
        pairs = torch.arange(self._head_width).view(2, -1).t().reshape(-1)
        self._layers = [self._layer(weights, index, pairs) for index in range(len(self._window_of))]

    def _layer(self, weights: dict[str, torch.Tensor], index: int, pairs: torch.Tensor) -> _Layer:
        """Copies of a layer's weights, merged and reordered, in the decoding format."""
        prefix = f"model.layers.{index}."

        def take(name: str) -> torch.Tensor | None:
            tensor = weights.get(prefix + name)
            return None if tensor is None else tensor.to(self.dtype)

        def paired(name: str) -> torch.Tensor | None:
            tensor = take(name)
            if tensor is None:
                return None
            return tensor.unflatten(0, (-1, self._head_width))[:, pairs.to(tensor.device)].flatten(0, 1)

        def merged(kind: str) -> torch.Tensor | None:
            parts = [paired(f"self_attn.q_proj.{kind}"), paired(f"self_attn.k_proj.{kind}")]
            parts.append(take(f"self_attn.v_proj.{kind}"))
            return None if parts[0] is None else torch.cat([part for part in parts if part is not None])

        def own(name: str) -> Projection:
            weight = take(f"{name}.weight")
            assert weight is not None
            return Projection(weight, take(f"{name}.bias"), many_tokens=self._scores)

        norm_in, norm_mid = take("input_layernorm.weight"), take("post_attention_layernorm.weight")
        qkv = merged("weight")
        assert norm_in is not None and norm_mid is not None and qkv is not None
        return _Layer(
            norm_in_D=norm_in.clone(),
            qkv=Projection(qkv, merged("bias"), many_tokens=self._scores),
            q_norm_d=paired("self_attn.q_norm.weight") if self._qk_norm else None,
            k_norm_d=paired("self_attn.k_norm.weight") if self._qk_norm else None,
            out=own("self_attn.o_proj"),
            norm_mid_D=norm_mid.clone(),
            gate=own("mlp.gate_proj"),
            up=own("mlp.up_proj"),
            down=own("mlp.down_proj"),
            window=self._window_of[index],
        )

    # -- the network ----------------------------------------------------------------------------

    def _angles(self, positions: int) -> None:
        """Rotations exp(i * angle) of the first positions, as the family defines them."""
        if self._table_P.shape[0] >= positions:
            return
        probe = torch.empty(1, 1, 1, dtype=torch.float32, device=self.device)
        cos, sin = self._rotary(probe, torch.arange(padded_width(positions), device=self.device).unsqueeze(0))
        half = self._head_width // 2
        self._table_P = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())

    def _run(self, tokens_N: torch.Tensor, rotation_N: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Final hidden states (N, D), norm applied."""
        self.positions += tokens_N.shape[0]
        width, rotated = (self.hidden_size,), self._heads + self._kv_heads
        rotation_N1 = rotation_N.unsqueeze(1)
        x_ND = self._embedding_VD[tokens_N]
        for index, layer in enumerate(self._layers):
            normed_ND = nn.functional.rms_norm(x_ND, width, layer.norm_in_D, self._eps)
            qkv_NHd = layer.qkv(normed_ND).unflatten(1, (-1, self._head_width))
            qk_NHd = self._rotate(self._normed(qkv_NHd[:, :rotated], layer), rotation_N1)
            v_NHd = qkv_NHd[:, rotated:].to(self._attention_dtype)
            mixed = attend(index, qk_NHd[:, : self._heads], qk_NHd[:, self._heads :], v_NHd)
            x_ND = layer.out.plus(mixed.to(self.dtype), x_ND)
            normed_ND = nn.functional.rms_norm(x_ND, width, layer.norm_mid_D, self._eps)
            x_ND = layer.down.plus(layer.up.times(normed_ND, layer.gate.silu(normed_ND)), x_ND)
        return nn.functional.rms_norm(x_ND, width, self._norm_out_D, self._eps)

    def _normed(self, qk_NHd: torch.Tensor, layer: _Layer) -> torch.Tensor:
        if layer.q_norm_d is None:
            return qk_NHd
        shape = (self._head_width,)
        q_NHd = nn.functional.rms_norm(qk_NHd[:, : self._heads], shape, layer.q_norm_d, self._eps)
        k_NHd = nn.functional.rms_norm(qk_NHd[:, self._heads :], shape, layer.k_norm_d, self._eps)
        return torch.cat((q_NHd, k_NHd), dim=1)

    def _rotate(self, qk_NHd: torch.Tensor, rotation_N1: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(qk_NHd.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotation_N1).flatten(-2).to(self._attention_dtype)

    def logits(self, hidden_ND: torch.Tensor, vocab: int) -> torch.Tensor:
        return self._head(hidden_ND)[..., :vocab]

    # -- decoding -------------------------------------------------------------------------------

    def start(self, rows: int, columns: int) -> None:
        self._angles(columns)
        self._columns = Columns(rows, columns, frozenset(self._window_of), self.device, self._attention_dtype)
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
        rows, shared, group = batch.rows, self._kv_heads, self._group
        bias = {
            window: batch.step_bias(window, width)
            .view(rows, 1, 1, width)
            .expand(rows, shared, group, width)
            .reshape(rows * shared, group, width)
            for window in set(self._window_of)
        }
        scale = self._head_width**-0.5

        def attend(index: int, q_BHd: torch.Tensor, k_BRd: torch.Tensor, v_BRd: torch.Tensor) -> torch.Tensor:
            keys, values = self._cache.keys[index], self._cache.values[index]
            keys.index_copy_(2, batch.next_1, k_BRd.unsqueeze(2))
            values.index_copy_(2, batch.next_1, v_BRd.unsqueeze(2))
            q = q_BHd.reshape(rows * shared, group, self._head_width)
            keys = keys[:, :, :width].view(rows * shared, width, self._head_width)
            values = values[:, :, :width].view(rows * shared, width, self._head_width)
            seen = bias[self._window_of[index]]
            if self._attention_dtype == torch.float32:
                weight = torch.baddbmm(seen, q, keys.transpose(1, 2), alpha=scale).softmax(dim=-1)
                mixed = torch.bmm(weight, values)
            else:  # products of half precision round the scores; the fused kernel does not
                mixed = nn.functional.scaled_dot_product_attention(
                    q.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1), attn_mask=seen.unsqueeze(1)
                )
            return mixed.reshape(rows, -1)

        hidden_BD = self._run(tokens_B, self._table_P[batch.step_positions()], attend)
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
            index_N = packed_index(first[begin:end], stop[begin:end], columns, self.device)
            tokens_N = tokens_BK[begin:end].flatten()[index_N]
            rotation_N = self._table_P[batch.chunk_positions(begin, end, columns).flatten()[index_N]]
            attend = self._attend_chunk(begin, end, columns, index_N)
            hidden_BKD[begin:end].flatten(0, 1).index_copy_(0, index_N, self._run(tokens_N, rotation_N, attend))
        batch.close_chunk(columns)
        return hidden_BKD

    def _attend_chunk(self, begin: int, end: int, columns: int, index_N: torch.Tensor) -> Attend:
        batch, rows = self._batch, end - begin
        bias = {
            window: batch.chunk_bias(begin, end, columns, window).repeat(1, 1, self._group, 1)
            for window in set(self._window_of)
        }

        def attend(index: int, q_NHd: torch.Tensor, k_NRd: torch.Tensor, v_NRd: torch.Tensor) -> torch.Tensor:
            keys, values = self._cache.keys[index][begin:end], self._cache.values[index][begin:end]
            before, after = batch.count, batch.count + columns
            keys[:, :, before:after] = _spread(k_NRd, index_N, rows, columns)
            values[:, :, before:after] = _spread(v_NRd, index_N, rows, columns)
            mixed = self._grouped(
                _spread(q_NHd, index_N, rows, columns),
                keys[:, :, :after],
                values[:, :, :after],
                bias[self._window_of[index]],
            )
            return mixed[index_N]

        return attend

    def _grouped(
        self, q_BHKd: torch.Tensor, keys_BRWd: torch.Tensor, values_BRWd: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attention (B * K, H * d); the heads of a group stand one below the other as queries of one head."""
        rows, _, columns, width = q_BHKd.shape
        folded = q_BHKd.reshape(rows, self._kv_heads, self._group * columns, width)
        mixed = nn.functional.scaled_dot_product_attention(folded, keys_BRWd, values_BRWd, attn_mask=bias)
        mixed = mixed.view(rows, self._heads, columns, width)
        return mixed.transpose(1, 2).reshape(rows * columns, -1)

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> list[torch.Tensor]:
        self._angles(max(map(len, sequences)))
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        hidden: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
        for begin, end in row_slices([len(sequences[row]) for row in order], _CHUNK_TOKENS):
            rows = [sequences[row] for row in order[begin:end]]
            lengths = [len(row) for row in rows]
            columns = max(lengths)
            index_N = packed_index([0] * len(rows), lengths, columns, self.device)
            tokens_N = padded(rows, self.device, left=False).flatten()[index_N]
            attend = self._attend_alone(len(rows), columns, index_N)
            hidden_ND = self._run(tokens_N, self._table_P[index_N % columns], attend)
            for row, part in zip(order[begin:end], hidden_ND.split(lengths), strict=True):
                hidden[row] = part[first[row] :].clone()
        return hidden

    def _attend_alone(self, rows: int, columns: int, index_N: torch.Tensor) -> Attend:
        """Attention within the tokens given: padding on the right is what no token sees anyway."""
        batch = Columns(1, columns, frozenset(), self.device, self._attention_dtype)
        bias = {
            window: batch.chunk_bias(0, 1, columns, window).repeat(1, 1, self._group, 1)
            for window in set(self._window_of)
        }

        def attend(index: int, q_NHd: torch.Tensor, k_NRd: torch.Tensor, v_NRd: torch.Tensor) -> torch.Tensor:
            q, k, v = (_spread(part, index_N, rows, columns) for part in (q_NHd, k_NRd, v_NRd))
            return self._grouped(q, k, v, bias[self._window_of[index]])[index_N]

        return attend

    def retire(self, keep: torch.Tensor) -> None:
        self._batch.retire(keep)
        self._cache.retire(keep)

    def release(self) -> None:
        self._columns = None
        self._cache.release()


def _spread(part_NHd: torch.Tensor, index_N: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Joined tokens back in their rows: (B, H, K, d), zero where there is no token."""
    _, heads, width = part_NHd.shape
    if index_N.shape[0] == rows * columns:
        grid = part_NHd
    else:
        grid = torch.zeros(rows * columns, heads, width, dtype=part_NHd.dtype, device=part_NHd.device)
        grid.index_copy_(0, index_N, part_NHd)
    return grid.view(rows, columns, heads, width).transpose(1, 2)
