"""Conditional and range requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

from api.http.problems import RangeNotSatisfiable

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
