"""Sends a file with a strong entity tag: 304, one range, 206, 416."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.http.conditional import byte_range, none_match
from api.http.problems import NotFound

CHUNK_BYTES = 1 << 20


def read_chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        left = stop - start
        while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def content_disposition(name: str) -> str:
    """RFC 6266: a plain name for old clients, the true one in UTF-8 where they differ."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f'attachment; filename="{plain}"' + ("" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}")


def file_response(request: Request, path: Path, *, sha256: str, size: int, name: str, media_type: str) -> Response:
    """`path` as the request's headers ask for it. Raises NotFound where the bytes are gone or not as recorded."""
    etag = f'"{sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if not path.is_file() or path.is_symlink() or path.stat().st_size != size:
        raise NotFound(f"The bytes of {name} are no longer on this machine.", code="content_gone")
    wanted = byte_range(request.headers.get("range"), request.headers.get("if-range"), etag=etag, size=size)
    headers["Content-Disposition"] = content_disposition(name)
    start, stop = wanted or (0, size)
    headers["Content-Length"] = str(stop - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(read_chunks(path, start, stop), status_code=status, headers=headers, media_type=media_type)
