"""Fetches a finished student: whole, checked, or not at all.

Files are gathered in `.<folder>.partial` beside the folder and verified against the sha256 of the manifest; only
then is that folder renamed. A download that was interrupted continues where it stopped (RFC 9110, 14.2: Range with
If-Range), also after the process is gone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx

from minillm.errors import ApiError, DownloadError, MinillmError, Unreachable
from minillm.transport import Transport
from minillm.types import Manifest, ManifestFile

MANIFEST_NAME = "manifest.json"
CHUNK_BYTES = 1 << 20
BROKEN_CONNECTIONS = 8
"""How often in a row, without a byte in between, a transfer may break before it is given up."""


def download_student(
    transport: Transport,
    artifact_path: str,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    sleep: Callable[[float], None],
) -> Path:
    """Fetch the artifact at `artifact_path` into `folder` and return the folder, absolute.

    `progress` is called with the bytes that are there and the bytes of all files. A folder that already holds exactly
    these files is left as it is. Raises DownloadError where the folder holds anything else, where a name of the
    manifest leads out of it, or where bytes differ from the manifest a second time in a row.
    """
    folder = folder.expanduser().absolute()
    try:
        manifest = Manifest.model_validate_json(transport.request("GET", artifact_path).content)
    except ValueError as error:
        raise MinillmError("the service answered what is no manifest") from error
    for file in manifest.files:
        _check_name(file.name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if folder.is_dir() and all(_verifies(folder / file.name, file) for file in manifest.files):
            return folder
        raise DownloadError(f"{folder} exists and holds something else: choose another folder or move it away")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    total = sum(file.bytes for file in manifest.files)
    done = 0
    for file in manifest.files:
        before = done

        def report(here: int, before: int = before) -> None:
            if progress is not None:
                progress(before + here, total)

        _fetch_verified(
            transport, f"{artifact_path}/files/{quote(file.name)}", partial / file.name, file, report, sleep
        )
        done += file.bytes
    _remove_strangers(partial, manifest)
    written = transport.request("GET", f"{artifact_path}/files/{MANIFEST_NAME}").content
    if hashlib.sha256(written).hexdigest() != manifest.manifest_sha256:
        raise DownloadError(f"{MANIFEST_NAME} does not have the sha256 that the service names for it")
    _write_durably(partial / MANIFEST_NAME, written)
    _sync_folder(partial)
    os.replace(partial, folder)
    _sync_folder(folder.parent)
    return folder


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name != str(path):
        raise DownloadError(f"the manifest names a file outside of the student: {name!r}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verifies(path: Path, file: ManifestFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256


def _fetch_verified(
    transport: Transport,
    url: str,
    target: Path,
    file: ManifestFile,
    report: Callable[[int], None],
    sleep: Callable[[float], None],
) -> None:
    """`target` with the bytes of the manifest; what an earlier run left is kept if it is a true beginning of them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        _fetch(transport, url, target, file, report, sleep)
        if _verifies(target, file):
            report(file.bytes)
            return
        target.unlink(missing_ok=True)
    raise DownloadError(f"{file.name} does not have the sha256 of its manifest, twice in a row: nothing was kept of it")


def _fetch(
    transport: Transport,
    url: str,
    target: Path,
    file: ManifestFile,
    report: Callable[[int], None],
    sleep: Callable[[float], None],
) -> None:
    """Bring `target` to its full size, continuing after each break of the connection."""
    breaks = 0
    while True:
        have = target.stat().st_size if target.exists() else 0
        if have > file.bytes:
            target.unlink()
            have = 0
        if have == file.bytes and target.exists():
            return
        # Ranges count the bytes as stored, so that they must come as stored.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{file.sha256}"'}
        try:
            with transport.stream("GET", url, headers=headers) as response:
                # 200 to a Range request: the service sends the whole, so what is here is not its beginning.
                part = response.status_code == httpx.codes.PARTIAL_CONTENT
                if part and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                    raise DownloadError(f"the service sent another part of {file.name} than was asked for")
                mode = "ab" if part else "wb"
                with target.open(mode) as out:
                    for chunk in response.iter_bytes(CHUNK_BYTES):
                        out.write(chunk)
                        breaks = 0
                        report(out.tell())
                        if out.tell() > file.bytes:
                            raise DownloadError(f"{file.name} is longer than its manifest says")
                    out.flush()
                    os.fsync(out.fileno())
            if target.stat().st_size == file.bytes:
                return
            error: Exception = Unreachable(f"the transfer of {file.name} ended early")
        except httpx.TransportError as broken:
            error = Unreachable(f"the transfer of {file.name} broke: {broken or type(broken).__name__}")
        except ApiError as refused:
            if refused.status != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE or have == 0:
                raise
            target.unlink(missing_ok=True)
            error = refused
        breaks += 1
        if breaks >= BROKEN_CONNECTIONS:
            raise error
        sleep(min(0.2 * 2**breaks, 10.0))


def _remove_strangers(folder: Path, manifest: Manifest) -> None:
    """Remove what an interrupted download of another student left here."""
    wanted = {folder / file.name for file in manifest.files}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path in keep.parents for keep in wanted):
                shutil.rmtree(path)
        elif path not in wanted:
            path.unlink()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
