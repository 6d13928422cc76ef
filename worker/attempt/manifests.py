"""Whether a folder is what its manifest says: the gate before a checkpoint is used or a student is offered."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Literal

from minillm_core.spec import MANIFEST_FILE, REPORT_FILE, STUDENT_DIR, Manifest, StudentEvent, parse_event
from minillm_core.spec.event_lines import SAMPLE_CHARACTERS, event_line, shortened


class ManifestError(Exception):
    """The folder is incomplete, damaged or not what was announced; the message says which file and why."""


class Unreadable(ManifestError):
    """A file cannot be opened or read here and now: it may be whole on another machine or at another time."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def committed_student(run_dir: Path, *, seq: int) -> StudentEvent | None:
    """What the trainer of a run folder would have said of the student in it; None where there is none.

    A student's folder appears whole or not at all, with the report that is told of it.
    """
    folder = run_dir / STUDENT_DIR
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
        manifest = Manifest.read(raw)
        report = json.loads((folder / REPORT_FILE).read_bytes())
        if "samples" in report:
            report["samples"] = shortened(report["samples"], SAMPLE_CHARACTERS)
        event = {
            "seq": seq,
            "time": manifest.created_at,
            "type": "student",
            "path": STUDENT_DIR,
            "manifest_sha256": hashlib.sha256(raw).hexdigest(),
            "bytes": sum(file.bytes for file in manifest.files),
            "parameters": manifest.data.get("parameters"),
            "teacher_parameters": manifest.data.get("teacher_parameters"),
            "report": report,
        }
        found = parse_event(event_line(event))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found if isinstance(found, StudentEvent) else None


def verify(
    folder: Path, *, kind: Literal["checkpoint", "student"], manifest_sha256: str, contents: bool = True
) -> Manifest:
    """Check `folder` against its manifest, and the manifest against the digest that was announced for it.

    With ``contents=False`` only presence and sizes of the files are checked, which costs no reading.
    Files that the manifest does not name are allowed and never offered.
    Raises ManifestError.
    """
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise Unreadable(f"{folder.name}: no readable manifest ({error.strerror})") from error
    if hashlib.sha256(raw).hexdigest() != manifest_sha256:
        raise ManifestError(f"{folder.name}: the manifest is not the one that was announced")
    try:
        manifest = Manifest.read(raw)
    except ValueError as error:
        raise ManifestError(f"{folder.name}: the manifest cannot be read: {str(error).splitlines()[0]}") from error
    if manifest.kind != kind:
        raise ManifestError(f"{folder.name}: a manifest of a {manifest.kind}, not of a {kind}")
    if not manifest.files:
        raise ManifestError(f"{folder.name}: the manifest names no files")
    root = folder.resolve()
    for file in manifest.files:
        name = PurePosixPath(file.name)
        path = root.joinpath(*name.parts)
        if name.is_absolute() or ".." in name.parts or not path.resolve().is_relative_to(root):
            raise ManifestError(f"{folder.name}: {file.name!r} lies outside of the folder")
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise ManifestError(f"{folder.name}: {file.name} has {size} bytes instead of {file.bytes}")
            if contents and file_sha256(path) != file.sha256:
                raise ManifestError(f"{folder.name}: {file.name} is damaged (its sha256 differs)")
        except OSError as error:
            raise Unreadable(f"{folder.name}: {file.name} cannot be read ({error.strerror})") from error
    return manifest
