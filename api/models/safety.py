"""Refuses model folders whose JSON files would make a loader fetch or run code.

`trust_remote_code=False` has been bypassed by fields of config.json more than once (CVE-2026-4372,
CVE-2026-5241), so such fields never reach the loader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 4 << 20
# Files that name classes; vocabularies are large and name none.
_CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "adapter_config.json",
)
_CODE_FIELDS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "custom_pipeline", "use_kernels"})
_ATTENTION_FIELDS = frozenset({"attn_implementation", "_attn_implementation", "_attn_implementation_internal"})
# A built-in attention has a plain name; owner/repository is fetched from the hub and run.
_PLAIN_NAME = re.compile(r"[a-z0-9_]*")


def code_fields(folder: Path) -> list[str]:
    """Names such as `config.json: auto_map` of all that would load code in the folder; empty where it is safe."""
    found = []
    for name in _CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_JSON_BYTES:
            found.append(f"{name}: larger than {MAX_JSON_BYTES >> 20} MiB")
            continue
        try:
            content = json.loads(path.read_bytes())
            found += [f"{name}: {field}" for field in _suspicious(content)]
        except (ValueError, RecursionError):
            found.append(f"{name}: not JSON")
    return found


def _suspicious(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _suspicious(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if (name in _CODE_FIELDS and item) or (name in _ATTENTION_FIELDS and not _is_plain(item)):
                yield name
            else:
                yield from _suspicious(item)


def _is_plain(value: Any) -> bool:
    """Whether an attention setting names built-in implementations only."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or (isinstance(value, str) and _PLAIN_NAME.fullmatch(value) is not None)
