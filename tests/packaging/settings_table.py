"""The table of docs/settings.md, made from the settings class: ``python -m tests.packaging.settings_table``."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from store.settings import Settings

_UNSET = {"database_url": "`<data_dir>/minillm.db`", "models_root": "`<data_dir>/models`"}


def rows() -> list[str]:
    """One line of Markdown for each setting, in the order of the class."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `MINILLM_{name.upper()}` | {_default(name, field)} | {meaning} |")
    return lines


def _default(name: str, field: FieldInfo) -> str:
    if name in _UNSET:
        return _UNSET[name]
    value: Any = field.default
    assert value is not PydanticUndefined, f"{name} has no default"
    if value in (None, ()):
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if name.endswith("_bytes") and value:
        return f"`{value}` ({value // 2**20} MiB)"
    return f"`{value}`"


if __name__ == "__main__":
    print("\n".join(rows()))
