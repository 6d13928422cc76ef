"""What can be known of models before a step of training: whether they go together, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minillm_core.errors import UserError
from minillm_core.models.lora import add_lora
from minillm_core.models.pruning import pruned_config
from minillm_core.spec import JobSpec

NOT_FINITE = "model_not_finite"
TOKENS_BEYOND = "token_without_embedding"


def check_shapes(job: JobSpec, teacher: PreTrainedConfig, student: PreTrainedConfig | None) -> None:
    """Build the models and the adapter without memory for their weights.

    ``student`` is None where it is pruned from the teacher. Raises UserError ``unsupported_model`` where a config makes
    no model, ``too_many_layers``, and as :func:`minillm_core.models.lora.add_lora` where the adapter has no place.
    """
    _shape_of(teacher, "/teacher/model")
    if student is None:
        assert job.student.prune_teacher is not None
        config = pruned_config(teacher, job.student.prune_teacher.layers)
        model = _shape_of(config, "/student/prune_teacher")
    else:
        model = _shape_of(student, "/student/model")
    if job.student.lora is not None:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            add_lora(model, job.student.lora)


def _shape_of(config: PreTrainedConfig, param: str) -> PreTrainedModel:
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        # Each family judges its config in its own way, while it multiplies and divides with it.
        raise UserError(
            "unsupported_model", f"config.json makes no model: {type(error).__name__}: {error}", param=param
        ) from error
    return model


def check_embedded(
    ids: Iterable[int], tokenizer: PreTrainedTokenizerBase, widths: Sequence[tuple[str, int]], *, where: str
) -> None:
    """Raise UserError ``token_without_embedding`` where an id is past the embedding of a model.

    ``widths`` are the rows of each embedding with the field that names its model; ``where`` says what holds the ids.
    """
    largest = max(ids, default=0)
    for param, width in widths:
        if largest >= width:
            token = tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                TOKENS_BEYOND,
                f"{where} the token {token!r} of the tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) "
                f"has the id {largest}, but the model's embedding has {width} rows: resize the embedding of the model, "
                "or take the added tokens out of its tokenizer",
                param=param,
            )


def check_finite(model: nn.Module, *, param: str) -> None:
    """Raise UserError ``model_not_finite`` naming the first tensor that holds NaN or an infinite number."""
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            continue
        # The ends of a tensor are NaN where any of its numbers is: one pass, and no table of booleans.
        ends = torch.stack(torch.aminmax(parameter.detach()))
        if not torch.isfinite(ends).all():
            raise UserError(
                NOT_FINITE,
                f"the weights of the model are not finite in {_name(parameter.dtype)}: {name} holds NaN or infinity",
                param=param,
            )


def check_finite_answers(log_probs: Sequence[torch.Tensor], dtype: torch.dtype, *, param: str) -> None:
    """Raise UserError ``model_not_finite`` where log-probabilities of the first rows' responses are not finite."""
    for number, logp_L in enumerate(log_probs):
        if not torch.isfinite(logp_L).all():
            raise UserError(
                NOT_FINITE,
                f"the model's log-probabilities of row {number + 1} of the training set are not finite in "
                f"{_name(dtype)}: its weights are damaged, or too large for the number format (bfloat16 and float32 "
                "reach further than float16)",
                param=param,
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
