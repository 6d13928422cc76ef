"""Files that jobs read, and models that they may name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import httpx

from minillm.api.requests import Pages, Requests, json_of, parsed, query, segment
from minillm.download import sha256_of
from minillm.errors import DownloadError, SpecError, Unreachable
from minillm.types import File, Model

UPLOAD_TIMEOUT_SECONDS = 600.0
"""The service checks every row of a dataset before it answers."""


class FileMethods(Requests):
    def upload_file(self, path: str | Path, *, purpose: str = "dataset") -> File:
        """Upload a local file; `purpose` is `dataset`, `corpus` or `calibration`. Raises SpecError without the file."""
        source = Path(path)
        if not source.is_file():
            raise SpecError(f"no such file: {source}")
        with source.open("rb") as stream:
            response = self._transport.request(
                "POST",
                "/v1/files",
                files={"file": (source.name, stream, "application/octet-stream")},
                data={"purpose": purpose},
                timeout=UPLOAD_TIMEOUT_SECONDS,
            )
        return parsed(File, json_of(response))

    def file(self, file_id: str) -> File:
        return self._get(File, f"/v1/files/{segment(file_id)}")

    def files(self, *, purpose: str | None = None, limit: int | None = None) -> list[File]:
        """Uploaded files, newest first."""
        return list(self.iter_files(purpose=purpose, limit=limit))

    def iter_files(self, *, purpose: str | None = None, limit: int | None = None) -> Pages[File]:
        """The same, fetched page by page."""
        return self._list(File, "/v1/files", query(purpose=purpose), limit=limit)

    def download_file(self, file_id: str, path: str | Path) -> Path:
        """Fetch an uploaded file to `path`, which appears whole or not at all.

        Raises DownloadError where the bytes do not have the sha256 that the service names.
        """
        target = Path(path).expanduser().absolute()
        described = self.file(file_id)
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                self._transport.stream("GET", f"/v1/files/{segment(file_id)}/content") as response,
                partial.open("wb") as out,
            ):
                for chunk in response.iter_bytes():
                    out.write(chunk)
            if described.sha256 is not None and sha256_of(partial) != described.sha256:
                raise DownloadError(f"{file_id} does not have the sha256 that the service names for it")
            os.replace(partial, target)
        except httpx.TransportError as error:
            raise Unreachable(f"the transfer of {file_id} broke: {error or type(error).__name__}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
        return target

    def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file that no unfinished job uses."""
        self._transport.request("DELETE", f"/v1/files/{segment(file_id)}")


class ModelMethods(Requests):
    def models(self, *, kind: str | None = None, limit: int | None = None) -> list[Model]:
        """Models that a job may name: those under the models root (`base`) and students made here (`student`)."""
        return list(self.iter_models(kind=kind, limit=limit))

    def iter_models(self, *, kind: str | None = None, limit: int | None = None) -> Pages[Model]:
        """The same, fetched page by page."""
        return self._list(Model, "/v1/models", query(kind=kind), limit=limit)

    def model(self, model_id: str) -> Model:
        """By its id, or by its reference such as `path:<folder>`."""
        return self._get(Model, f"/v1/models/{segment(model_id)}")
