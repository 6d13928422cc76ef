"""The exported folder is the same model to transformers 4.57, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillm_core.models.loading import load_causal_lm, load_tokenizer
from tests.minillm_core.export.test_student import IDS_BT, export, logits
from tests.tiny_models import FAMILIES, write_tiny_model

OLDER = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")
TEXT = "1234 it's  Straße\n\tThe river"
READER = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
text, ids, *folders = json.loads(sys.argv[1])
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids)).logits.tolist()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    cut = tokenizer(text)["input_ids"]
    print(json.dumps([transformers.__version__, str(model.dtype), cut, prompt, logits]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a Python that imports the older release before what is installed; torch stays as it is."""
    folder = tmp_path_factory.mktemp("older")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *OLDER]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("PyPI does not answer: transformers 4.57 is not tried")
    if made.returncode != 0:
        pytest.skip(f"transformers 4.57 cannot be installed: {made.stderr.strip()[-200:]}")
    return {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_transformers_4_reads_the_same_model(environment: dict[str, str], tmp_path: Path) -> None:
    wanted = []
    folders = []
    for family in FAMILIES:
        source = write_tiny_model(tmp_path / family / "teacher", family)
        config = json.loads((source / "config.json").read_text())
        if "rope_theta" in (config.get("rope_parameters") or {}):
            config["rope_parameters"]["rope_theta"] = 1e6
        (source / "config.json").write_text(json.dumps(config))
        model = load_causal_lm(source, torch.float32)
        folders.append(str(export(tmp_path / family / "student", model, source).path))
        tokenizer = load_tokenizer(source)
        turns = [{"role": "user", "content": TEXT}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        wanted.append((tokenizer(TEXT)["input_ids"], prompt, logits(model)))
    asked = json.dumps([TEXT, IDS_BT.tolist(), *folders])
    ended = subprocess.run(
        [sys.executable, "-c", READER, asked], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(FAMILIES)
    for (version, dtype, cut, prompt, logits_BTV), (ids, rendered, mine_BTV) in zip(answers, wanted, strict=True):
        assert (version, dtype, cut, prompt) == ("4.57.6", "torch.float32", ids, rendered)
        torch.testing.assert_close(torch.tensor(logits_BTV), mine_BTV, rtol=1e-4, atol=1e-5)
