"""The exported folder loads as the model it was, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from minillm_core import chat
from minillm_core.data.templates import Template, prompt_texts, render_prompt
from minillm_core.export import student as exporting
from minillm_core.export.card import RunFacts, Sample, Score, model_card
from minillm_core.export.student import ExportedStudent, write_student
from minillm_core.manifests import verify_folder
from minillm_core.models.loading import load_causal_lm, load_tokenizer
from minillm_core.models.lora import add_lora, merge_lora
from minillm_core.models.pruning import prune_layers
from minillm_core.spec import JobSpec, LoraSpec
from minillm_core.spec.rows import Example, Message
from tests.tiny_models import FAMILIES, write_tiny_model

IDS_BT = torch.arange(3, 33).reshape(2, 15)
SPEC = JobSpec.model_validate(
    {
        "name": "small one",
        "teacher": {"model": "hub:someone/large", "revision": "v2"},
        "student": {"prune_teacher": {"layers": 2}},
        "dataset": {"file": "file_1"},
        "method": {"type": "minillm"},
    }
)
REPORT = {"verdict": "It is that of step 3."}
FACTS = RunFacts(
    parameters=1234567,
    teacher_parameters=7654321,
    train_rows=90,
    dev_rows=10,
    steps=50,
    job_id="job_1",
    scores={"rouge_l": Score(21.5, 27.25), "ece": Score(None, 0.1)},
    samples=[Sample("Why | so?", "```\ncode\n```", "Because.")],
)


def export(folder: Path, model: PreTrainedModel, source: Path, **changed: object) -> ExportedStudent:
    tokenizer = load_tokenizer(source)
    settings: dict[str, Any] = {"spec": SPEC, "dtype": "float32", "end_ids": [tokenizer.eos_token_id], **changed}
    return write_student(folder, model, tokenizer, facts=FACTS, report=REPORT, **settings)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_BT).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_it_was(family: str, tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher", family, layers=4)
    model = prune_layers(load_causal_lm(source, torch.float32), 2)
    exported = export(tmp_path / "run" / "student", model, source)
    loaded = AutoModelForCausalLM.from_pretrained(
        exported.path, attn_implementation=model.config._attn_implementation
    ).eval()
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(exported.path)
    assert tokenizer.chat_template == load_tokenizer(source).chat_template
    output = loaded.generate(IDS_BT[:1], max_new_tokens=5)
    assert output.shape[1] <= 20
    # As teacher or student of another job.
    assert torch.equal(logits(load_causal_lm(exported.path, torch.float32)), logits(model))


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
@pytest.mark.parametrize("starts", [True, False])
def test_every_program_renders_as_the_training_did(template: Template, starts: bool, tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher", "llama" if starts else "qwen2")
    spec = SPEC.model_copy(update={"dataset": SPEC.dataset.model_copy(update={"template": template})})
    exported = export(tmp_path / "student", load_causal_lm(source, torch.float32), source, spec=spec).path
    student = chat.Student(exported)
    said = [Message("system", "Be {{ brief }}\n"), Message("user", " It's \\n 'so' \n\n\tthe river  ")]
    for messages in (said[1:], said):
        example = Example("messages", tuple(messages), "", 1, messages[-1].content)
        wanted = render_prompt(example, template, load_tokenizer(source))
        turns = [{"role": message.role, "content": message.content} for message in messages]
        answered = [*turns, {"role": "assistant", "content": "an answer"}]
        for tokenizer in (PreTrainedTokenizerFast.from_pretrained(exported), load_tokenizer(exported)):
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert prompt == wanted
            whole = tokenizer.apply_chat_template(answered, tokenize=False)
            assert "an answer" in whole
            if template != "chat":
                assert whole.endswith(f"an answer{tokenizer.eos_token}")
        assert student.encode(student.render(turns))["input_ids"].tolist() == [wanted]
        (reported,) = prompt_texts([example], template, load_tokenizer(source))
        assert student.encode(reported)["input_ids"].tolist() == [wanted]
    if template == "alpaca":
        with pytest.raises(ValueError, match="one user message"):
            student.render([*answered, {"role": "user", "content": "b"}])


@pytest.mark.parametrize(
    ("family", "rope", "old"),
    [
        ("llama", {"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e6, "rope_scaling": None}),
        (
            "llama",
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            "gemma3",
            {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e3}},
            {"rope_theta": 1e6, "rope_scaling": None, "rope_local_base_freq": 1e3},
        ),
    ],
    ids=["theta", "scaling", "local"],
)
def test_a_config_says_all_under_the_names_of_older_releases(
    family: str, rope: dict[str, Any], old: dict[str, Any], tmp_path: Path
) -> None:
    source = write_tiny_model(tmp_path / "teacher", family)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    model = load_causal_lm(source, torch.float32)
    folder = export(tmp_path / "student", model, source).path
    content = json.loads((folder / "config.json").read_text())
    assert content.items() >= old.items() and content["torch_dtype"] == content["dtype"] == "float32"
    assert not any(name.startswith("_") for name in content)
    assert AutoConfig.from_pretrained(folder).rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))
    named = json.loads((folder / "tokenizer_config.json").read_text())
    assert named["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in named


def test_nothing_of_the_sources_config_asks_for_anything(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher")
    plain = export(tmp_path / "plain", load_causal_lm(source, torch.float32), source).path / "config.json"
    config = json.loads((source / "config.json").read_text())
    asked = {"_attn_implementation": "eager", "attn_implementation": "sdpa", "_experts_implementation": "eager"}
    more = {"use_kernels": False, "auto_map": {}, "transformers_weights": "a.safetensors", "nobody_knows": {"a": 1}}
    (source / "config.json").write_text(json.dumps({**config, **asked, **more}))
    exported = export(tmp_path / "student", load_causal_lm(source, torch.float32), source).path / "config.json"
    assert json.loads(exported.read_text()) == json.loads(plain.read_text())


def test_folder_is_committed(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher")
    model = load_causal_lm(source, torch.float32)
    (tmp_path / ".student.aside-dead").mkdir()
    exported = export(tmp_path / "student", model, source)
    manifest = verify_folder(exported.path)
    names = {entry.name for entry in manifest.files}
    assert {
        "README.md",
        "report.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    } <= names
    assert manifest.kind == "student" and manifest.data["parameters"] == 1234567
    assert exported.bytes == sum(entry.bytes for entry in manifest.files)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "student"}
    again = export(tmp_path / "student", model, source)
    assert again.path == exported.path and verify_folder(again.path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    source = write_tiny_model(tmp_path / "teacher")
    monkeypatch.setattr(exporting, "model_card", full)
    with pytest.raises(OSError, match="No space"):
        export(tmp_path / "student", load_causal_lm(source, torch.float32), source)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_dtype_of_the_folder_not_of_the_model(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher", "qwen2")
    model = load_causal_lm(source, torch.float32)
    before = logits(model)
    exported = export(tmp_path / "student", model, source, dtype="bfloat16")
    assert json.loads((exported.path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(exported.path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logits(model), before) and model.dtype == torch.float32
    expected = dict(model.to(torch.bfloat16).named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.named_parameters())


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher", "gpt2")
    model = load_causal_lm(source, torch.float32)
    exported = export(tmp_path / "student", model, source)
    loaded = AutoModelForCausalLM.from_pretrained(exported.path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    weights = (exported.path / "model.safetensors").stat().st_size
    assert weights < 4 * sum(parameter.numel() for parameter in model.parameters()) + 10_000


def test_merged_adapter_is_exported(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher")
    adapted = add_lora(load_causal_lm(source, torch.float32), LoraSpec(rank=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model = merge_lora(adapted)
    exported = export(tmp_path / "student", model, source)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported.path)), logits(model))


def test_a_model_that_came_from_gguf(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher")
    model = load_causal_lm(source, torch.float32)
    model.config.quantization_config = {"quant_method": "gguf", "gguf_file": "x.gguf"}
    exported = export(tmp_path / "student", model, source)
    assert "quantization_config" not in json.loads((exported.path / "config.json").read_text())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported.path)), logits(model))


def test_generation_stops_at_every_end_token(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "teacher")
    model = load_causal_lm(source, torch.float32)
    model.generation_config.temperature = 0.2
    exported = export(tmp_path / "student", model, source, end_ids=[1, 2, 1])
    settings = json.loads((exported.path / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [1, 2] and settings["pad_token_id"] == 2
    assert "temperature" not in settings


def test_card() -> None:
    card = model_card(SPEC, FACTS)
    assert card.startswith("---\nlibrary_name: transformers\n") and 'base_model: "someone/large"' in card
    assert "# small one" in card and "| teacher | hub:someone/large at v2, 7,654,321 parameters |" in card
    assert "| rouge_l | 21.5 | 27.25 |" in card and "| ece | not measured | 0.1 |" in card
    assert "````text\n```\ncode\n```\n````" in card
    assert '"teacher_mix_alpha": null' in card
    plain = SPEC.model_copy(update={"dataset": SPEC.dataset.model_copy(update={"template": "plain"})})
    assert "apply_chat_template" in card and "apply_chat_template" not in model_card(plain, FACTS)
