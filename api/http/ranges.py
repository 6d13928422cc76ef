"""Conditional and range requests (RFC 9110, sections 13 and 14), and bytes sent as they ask for: 200, 206, 304, 416."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.http.problems import NotFound, RangeNotSatisfiable

CHUNK_BYTES = 1 << 20
_ETAG = re.compile(r'\s*(W/)?"([^"]*)"\s*(?:,|$)')
_SINGLE_RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.IGNORECASE)


def _tags(header: str) -> list[tuple[bool, str]]:
    """(weak, opaque tag) of each entity tag of a list."""
    return [(match.group(1) is not None, match.group(2)) for match in _ETAG.finditer(header)]


def none_match(header: str | None, etag: str) -> bool:
    """Whether `If-None-Match` names this entity tag, so that 304 is the answer (weak comparison)."""
    if header is None:
        return False
    opaque = etag.removeprefix("W/").strip('"')
    return header.strip() == "*" or any(tag == opaque for _, tag in _tags(header))


def strong_tags(header: str) -> list[str]:
    """The opaque parts of an `If-Match` list that its strong comparison may use."""
    return [tag for weak, tag in _tags(header) if not weak]


def byte_range(header: str | None, if_range: str | None, *, etag: str, size: int) -> tuple[int, int] | None:
    """The half-open byte range asked for, or None where the whole is to be sent.

    A range in a unit we do not know, or malformed, is ignored as section 14.2 says; so is one whose
    `If-Range` names another entity tag. Raises RangeNotSatisfiable for more than one range (they
    serve no downloader and have served attackers) and for one that starts past the end.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    if header.strip().lower().startswith("bytes=") and "," in header:
        raise RangeNotSatisfiable(
            "One range a request: ask for each on its own.", headers={"Content-Range": f"bytes */{size}"}
        )
    match = _SINGLE_RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    # Cut before int(): Python refuses numbers of thousands of digits.
    first, last = (text[:20] for text in match.groups())
    if first == "":
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= stop:
        raise RangeNotSatisfiable(
            f"The range starts past the end of {size:,} bytes.", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop


@dataclass(frozen=True)
class Content:
    """Bytes that never change under one entity tag."""

    size: int
    read: Callable[[int, int], Iterator[bytes]]
    """Those from `start` to before `stop`."""


def send(request: Request, open: Callable[[], Content], *, etag: str, name: str, media_type: str) -> Response:
    """What `open` returns, as the request's headers ask for it; it is not opened where nothing has changed."""
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    content = open()
    wanted = byte_range(request.headers.get("range"), request.headers.get("if-range"), etag=etag, size=content.size)
    start, stop = wanted or (0, content.size)
    headers["Content-Disposition"] = content_disposition(name)
    headers["Content-Length"] = str(stop - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(content.read(start, stop), status_code=status, headers=headers, media_type=media_type)


def send_file(request: Request, path: Path, *, sha256: str, size: int, name: str, media_type: str) -> Response:
    """The file at `path`. Raises NotFound where the bytes are gone or not as recorded."""

    def open() -> Content:
        if not path.is_file() or path.is_symlink() or path.stat().st_size != size:
            raise NotFound(f"The bytes of {name} are no longer on this machine.", code="content_gone")
        return Content(size, lambda start, stop: read_chunks(path, start, stop))

    return send(request, open, etag=f'"{sha256}"', name=name, media_type=media_type)


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
