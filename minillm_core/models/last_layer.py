"""The last layer of the LLaMA-shaped families for those tokens alone whose hidden states are asked for.

A loss reads the hidden states that predict a response; a prompt's tokens serve the attention of others. In the last
layer nothing follows its attention, so what comes after it there (and the last norm) is only computed for the tokens
that count: the same numbers, and the same gradients.

Axes: M tokens of all rows joined, N of them that are asked for, D hidden width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from minillm_core.models.families import decoder_layers
from minillm_core.models.packed import PackedRows


class _LastLayer(nn.Module):
    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(
        self, hidden_states: Tensor, *others: Any, packed_rows: PackedRows | None = None, **named: Any
    ) -> Tensor:
        if packed_rows is not None:
            named["packed_rows"] = packed_rows
        if packed_rows is None or packed_rows.chosen_N is None or others:
            unchanged: Tensor = super().forward(hidden_states, *others, **named)  # type: ignore[misc]
            return unchanged
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
        chosen_1ND = (hidden_states + mixed).index_select(1, packed_rows.chosen_N)
        packed_rows.chosen_alone = True
        ended: Tensor = chosen_1ND + self.mlp(self.post_attention_layernorm(chosen_1ND))
        return ended


_FAMILIES = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
_LAST = {family: type(f"Last{family.__name__}", (_LastLayer, family), {}) for family in _FAMILIES}


def end_with_chosen_tokens(model: nn.Module) -> bool:
    """Let the last layer, in place, skip what only other tokens than the chosen ones of packed rows need.

    Returns whether the family is known. Names, parameters and results stay as they are.
    """
    layer = decoder_layers(model)[-1]
    last = _LAST.get(type(layer))
    if last is not None:
        layer.__class__ = last
    return last is not None
