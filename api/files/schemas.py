"""What goes out of `/v1/files`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from api.http.schema import Out

Purpose = Literal["dataset", "corpus", "calibration", "fine-tune"]


class FileOut(Out):
    id: str
    object: Literal["file"] = "file"
    filename: str
    purpose: str
    bytes: int
    sha256: str
    lines: int | None
    """Rows (of plain text, lines that are not blank)."""
    created_at: datetime
    expires_at: datetime | None


class FileDeleted(Out):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
