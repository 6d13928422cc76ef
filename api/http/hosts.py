"""Which names the service answers to, and whether a request comes from a page of another site.

Without keys being on this machine is all that a caller has to show, and every page in the user's browser is on it.
What tells a page apart is in headers that it cannot choose: the name that it reached the service by (a page of
evil.example whose name was made to mean 127.0.0.1 still says evil.example), and the site that it is of.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{0,5}))?", re.ASCII)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def host_name(value: str) -> str | None:
    """The name or address of a Host header in its one spelling; None where it is not a host with at most a port."""
    match = _HOST.fullmatch(value)
    if match is None or (match[2] and int(match[2]) > 65535):
        return None
    name = match[1].strip("[]").lower()
    return name.removesuffix(".") or None


def requested_host(scope: Scope, headers: Headers) -> str | None:
    """The host that a request is for; None without one, with several, or with one that is none.

    A target with a scheme (RFC 9112, 3.2.2) has to name the same one.
    """
    given = headers.getlist("host")
    name = host_name(given[0]) if len(given) == 1 else None
    target = str(scope["path"])
    if not target.startswith("/") and name is not None and host_name(_authority(target)) != name:
        return None
    return name


class AllowedHosts:
    """The names of this machine's loopback, and those of a list; `*.example.org` stands for each name below it."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {name.lower() for name in names}
        self._domains = tuple(name[1:] for name in self._names if name.startswith("*."))

    @property
    def listed(self) -> bool:
        """Whether there is a list at all."""
        return bool(self._names)

    def __contains__(self, name: str | None) -> bool:
        if name is None:
            return False
        return name == "localhost" or name in self._names or name.endswith(self._domains) or _is_loopback(name)


def from_another_site(scope: Scope, headers: Headers) -> bool:
    """Whether a browser says that a page of another site, or of another port of this one, makes this request."""
    origin = headers.get("origin")
    if origin is not None and _authority(origin).lower() != headers.get("host", "").lower():
        return True
    return scope["method"] not in _SAFE_METHODS and headers.get("sec-fetch-site") in ("cross-site", "same-site")


def _authority(url: str) -> str:
    """Host and port of a URL; empty, which no host is, where it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:  # such as http://[::1
        return ""


def _is_loopback(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)
