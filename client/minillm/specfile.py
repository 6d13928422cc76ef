"""Reads a job spec from YAML or JSON and finds the local files that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from minillm.errors import SpecError

LOCAL_FILES = {
    "dataset.file": "dataset",
    "pretrain_corpus.file": "corpus",
    "evaluation.calibration_file": "calibration",
}
"""Fields that may hold a local path, and the purpose that such a file is uploaded for."""

_REFERENCE = re.compile(r"^(file_[A-Za-z0-9]+|path:.+)$", re.DOTALL)
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")


class _Yaml12(yaml.SafeLoader):
    """YAML as the 1.2 core schema reads it: `5e-6` is a number, `off` and `2026-01-31` are text.

    Refuses a key that is given twice, which would silently drop one of the two.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is no name of a field", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Yaml12.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Yaml12.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a YAML (or JSON) file. Raises SpecError where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    try:
        spec = yaml.load(text, Loader=_Yaml12)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SpecError(f"{path}: {line}{error.problem or 'not YAML'}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{path} is not YAML: {error}") from error
    if not isinstance(spec, dict):
        raise SpecError(f"{path} holds no fields: a spec has at least teacher, student, dataset and method")
    return spec


def local_files(spec: dict[str, Any], base: Path) -> dict[str, Path]:
    """Dotted field -> local file that it names, relative paths seen from `base` and then from the current folder.

    References of uploaded files (`file_...`) and of the service's own folder (`path:...`) are left out.
    Raises SpecError that names the field where there is no such file.
    """
    found: dict[str, Path] = {}
    for field in LOCAL_FILES:
        outer, inner = field.split(".")
        section = spec.get(outer)
        value = section.get(inner) if isinstance(section, dict) else None
        if not isinstance(value, str) or _REFERENCE.match(value):
            continue
        name = Path(value).expanduser()
        candidates = [base / name, Path.cwd() / name]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise SpecError(f"no such file: {value}", field)
        found[field] = path.resolve()
    return found


def with_files(spec: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    """A copy of the spec with `ids` (dotted field -> file id) put in."""
    filled = dict(spec)
    for field, file_id in ids.items():
        outer, inner = field.split(".")
        filled[outer] = {**filled[outer], inner: file_id}
    return filled
