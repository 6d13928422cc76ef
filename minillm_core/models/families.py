"""The parts that every supported family has, under one name each.

The trainer runs the decoder alone and applies the head to the positions that count, so it needs
to know what a family does after the matrix product. Everything else (layer names, where the
embedding lies) is asked of transformers itself.

Axes: N tokens that count, B rows, T positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedConfig, PreTrainedModel

_DROPOUT_ATTRIBUTES = (
    "dropout",
    "attn_dropout",
    "attention_dropout",
    "activation_dropout",
    "resid_pdrop",
    "attn_pdrop",
    "embd_pdrop",
    "layerdrop",
)


class OutputHead(NamedTuple):
    """What turns hidden states into logits: ``softcap * tanh((h @ weight.T + bias) / softcap)``."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    softcap: float | None

    def cut(self, vocab: int) -> OutputHead:
        """The same over the first ``vocab`` tokens (views, no copy): padding never reaches the softmax."""
        bias_V = None if self.bias_V is None else self.bias_V[:vocab]
        return self._replace(weight_VD=self.weight_VD[:vocab], bias_V=bias_V)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of hidden states (..., D), in their number format."""
        logits_NV = nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V)
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a LoRA model; any other model as it is. Adapters stay active."""
    inside = getattr(model, "get_base_model", None)
    inner = inside() if callable(inside) else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"not a transformers model: {type(inner).__name__}")
    return inner


def base_model(model: nn.Module) -> nn.Module:
    """The decoder without the head; its output's ``last_hidden_state`` is what the head takes."""
    inner = unwrapped(model)
    return getattr(inner, inner.base_model_prefix)


def output_head(model: nn.Module) -> OutputHead:
    """The head's own tensors, not copies: gradients reach them."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    softcap = getattr(inner.config, "final_logit_softcapping", None)
    return OutputHead(head.weight, getattr(head, "bias", None), softcap)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers, first to last."""
    return dict(unwrapped(model).named_modules())[layers_name(model)]  # type: ignore[return-value]


def layers_name(model: nn.Module) -> str:
    """Dotted name of :func:`decoder_layers` within the transformers model, as in its state dict."""
    inner = unwrapped(model)
    count = inner.config.num_hidden_layers
    for name, module in inner.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith(("layers", ".h")) and len(module) == count:
            return name
    raise ValueError(f"no stack of {count} layers in {type(inner).__name__}")


def vocab_size(model: nn.Module) -> int:
    """V: rows of the head, padding included."""
    return output_head(model).weight_VD.shape[0]


def context_length(config: PreTrainedConfig) -> int:
    """Positions that the model was made for."""
    context = config.max_position_embeddings
    if not isinstance(context, int) or context < 1:
        raise ValueError(f"max_position_embeddings is {context!r}, not a number of tokens")
    return context


def position_ids_from_mask(attention_mask_BT: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) counted over the tokens that are there; padding gets a position that exists.

    Given explicitly, padding on either side changes nothing. Left alone, GPT-2 counts the padding as well.
    """
    return (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def hidden_states(
    model: nn.Module,
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor,
    position_ids_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Final hidden states (B, T, D), norm applied: one forward pass without cache and without head."""
    if position_ids_BT is None:
        position_ids_BT = position_ids_from_mask(attention_mask_BT)
    output = base_model(model)(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=position_ids_BT,
        use_cache=False,
    )
    return output.last_hidden_state


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to zero, so that training and evaluation compute the same.

    Called before a LoRA adapter is added it leaves the adapter's own dropout alone.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
            continue
        for name in _DROPOUT_ATTRIBUTES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    config = unwrapped(model).config
    for name in _DROPOUT_ATTRIBUTES:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Recompute each decoder layer in the backward pass instead of keeping its activations.

    Works in evaluation mode as well: transformers' own switch asks for training mode, which would
    bring dropout back. A forward pass without gradients or with a cache is left as it is.
    """
    for layer in decoder_layers(model):
        # A bound method, because a deep copy of the model binds it to the copy's own layer.
        layer.forward = types.MethodType(_recomputed, layer)


def _recomputed(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = types.MethodType(type(layer).forward, layer)
    cached = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))
    if cached or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters in place and leave the buffers.

    ``model.to(dtype)`` would also round the rotary frequencies, which the families compute with
    in float32: in bfloat16 a position of a thousand is then off by several.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
