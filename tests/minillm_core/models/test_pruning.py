"""A pruned student is the teacher with some of its layers, and its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minillm_core.errors import UserError
from minillm_core.models.families import decoder_layers, hidden_states
from minillm_core.models.loading import load_causal_lm
from minillm_core.models.pruning import kept_layers, prune_layers
from tests.tiny_models import FAMILIES, write_tiny_model

IDS_BT = torch.arange(3, 33).reshape(2, 15)


@pytest.mark.parametrize(
    ("total", "layers", "kept"),
    [
        (30, 2, [0, 29]),
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 3, [0, 2, 4]),
        (4, 1, [0]),
        (1, 1, [0]),
        (8, [1, 6, 7], [1, 6, 7]),
    ],
)
def test_kept_layers(total: int, layers: int | list[int], kept: list[int]) -> None:
    assert kept_layers(total, layers) == kept


def test_kept_layers_are_distinct_and_have_the_ends() -> None:
    for total in range(2, 40):
        for count in range(2, total + 1):
            kept = kept_layers(total, count)
            assert len(set(kept)) == count and kept == sorted(kept) and (kept[0], kept[-1]) == (0, total - 1)


@pytest.mark.parametrize("layers", [5, [0, 4]])
def test_more_than_there_are(layers: int | list[int]) -> None:
    with pytest.raises(UserError) as caught:
        kept_layers(4, layers)
    assert (caught.value.code, caught.value.param) == ("too_many_layers", "/student/prune_teacher/layers")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    teacher = load_causal_lm(write_tiny_model(tmp_path / "m", family, layers=5, scale=3.0), torch.float32)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = prune_layers(teacher, [0, 2, 3])

    # The teacher without the other layers, made by taking them out of its stack.
    reference = load_causal_lm(tmp_path / "m", torch.float32)
    stack = decoder_layers(reference)
    kept = [stack[index] for index in (0, 2, 3)]
    del stack[4], stack[1]
    assert list(stack) == kept
    reference.config.num_hidden_layers = 3
    if getattr(reference.config, "layer_types", None):
        types = reference.config.layer_types
        reference.config.layer_types = [types[0], types[2], types[3]]
        assert student.config.layer_types == reference.config.layer_types
    mask_BT = torch.ones_like(IDS_BT)
    with torch.no_grad():
        expected_BTD = hidden_states(reference, IDS_BT, mask_BT)
        torch.testing.assert_close(hidden_states(student, IDS_BT, mask_BT), expected_BTD)
        # The cache knows three layers: decoding token by token gives the same.
        cached = student.generate(IDS_BT, max_new_tokens=4, do_sample=False, use_cache=True, eos_token_id=-1)
        plain = student.generate(IDS_BT, max_new_tokens=4, do_sample=False, use_cache=False, eos_token_id=-1)
    assert torch.equal(cached, plain)

    assert student.config.num_hidden_layers == len(decoder_layers(student)) == 3
    assert student.config._attn_implementation == teacher.config._attn_implementation
    assert student.config.tie_word_embeddings == (
        student.get_input_embeddings().weight is student.get_output_embeddings().weight
    )
    theirs = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in student.state_dict().values()}
    with torch.no_grad():
        for parameter in student.parameters():
            assert parameter.requires_grad
            parameter.add_(1.0)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_dtype_and_rotary_frequencies(tmp_path: Path) -> None:
    teacher = load_causal_lm(write_tiny_model(tmp_path / "m", layers=4), torch.bfloat16)
    student = prune_layers(teacher, 2)
    assert student.dtype == torch.bfloat16
    assert torch.equal(student.model.rotary_emb.inv_freq, teacher.model.rotary_emb.inv_freq)
    assert student.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_config_from_gguf_leaves_its_origin(tmp_path: Path) -> None:
    teacher = load_causal_lm(write_tiny_model(tmp_path / "m", layers=4), torch.float32)
    teacher.config.quantization_config = {"quant_method": "gguf"}
    assert not hasattr(prune_layers(teacher, 2).config, "quantization_config")
