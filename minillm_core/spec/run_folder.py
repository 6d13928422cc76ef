"""The run folder: what the worker writes into it, and what whole folders consist of."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from minillm_core.spec.base import Strict
from minillm_core.spec.events import Count
from minillm_core.spec.job import JobSpec
from minillm_core.spec.versions import MANIFEST, read_spec

SPEC_FILE = "spec.json"
CONTEXT_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
CHECKPOINTS_DIR = "checkpoints"
STUDENT_DIR = "student"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
"""In the student's folder: the whole report, of which the event and the job have the texts cut."""
PINNED_FILE = "pinned.json"
"""A JSON list of names of folders under ``CHECKPOINTS_DIR`` that the trainer must not remove. Changes while it runs."""


class RunContext(Strict):
    """Where on this machine the things lie that a :class:`JobSpec` names; ``RUN_DIR/run.json``.

    Without the file the trainer resolves ``path:`` against the current folder and the run folder,
    which is how it is run by hand.
    """

    job_id: str | None = None
    attempt: int = Field(1, ge=1)
    models: dict[str, str] = Field(default_factory=dict)
    """Model reference -> folder, for every `path:` and `model_` reference of the spec."""
    files: dict[str, str] = Field(default_factory=dict)
    """File reference -> path."""
    resume_from: list[str] = Field(default_factory=list)
    """Checkpoint folders of earlier attempts, newest first; the first that verifies is used."""
    forked: bool = False
    """Whether the job began from another job's checkpoint: it never begins afresh."""
    hub_cache: str | None = None
    hub_offline: bool = False
    lifeline_fd: int | None = None
    """Read end of a pipe held by the supervisor; its end of file means that the supervisor is gone."""


def load_run(run_dir: Path) -> tuple[JobSpec, RunContext]:
    """Read ``spec.json`` and, when present, ``run.json``.

    Raises FileNotFoundError without a spec, pydantic.ValidationError where it is not valid, and UnknownVersion.
    """
    spec = read_spec((run_dir / SPEC_FILE).read_text(encoding="utf-8"))
    context_path = run_dir / CONTEXT_FILE
    context = RunContext.model_validate_json(context_path.read_text()) if context_path.exists() else RunContext()
    return spec, context


class ManifestFile(Strict):
    name: str
    """Path relative to the folder, with forward slashes."""
    bytes: Count
    sha256: str


class Manifest(Strict):
    """What a checkpoint or an exported student consists of; written last, named in the event."""

    kind: Literal["checkpoint", "student"]
    created_at: str
    files: list[ManifestFile]
    data: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def read(cls, text: str | bytes) -> Manifest:
        """The manifest of a file's content, of this release or an older one. Raises ValueError."""
        document = json.loads(text)
        return cls.model_validate(MANIFEST.present(document) if isinstance(document, dict) else document)

    @classmethod
    def shown(cls, text: str) -> Manifest:
        """What can be shown of a stored manifest, of whatever release: the files that it names."""
        try:
            document = MANIFEST.shown(json.loads(text))
        except ValueError:
            document = None
        fields = document if isinstance(document, dict) else {}
        listed = fields.get("files")
        files = []
        for entry in listed if isinstance(listed, list) else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                files.append(ManifestFile.model_validate({name: entry[name] for name in ManifestFile.model_fields}))
        return cls.model_construct(kind="student", created_at=str(fields.get("created_at", "")), files=files)

    def dumps(self) -> bytes:
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()
