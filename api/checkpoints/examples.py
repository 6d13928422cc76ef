"""Request bodies shown in the OpenAPI document; a test validates each."""

from __future__ import annotations

from typing import Any

Examples = dict[str, Any]

PATCH: Examples = {
    "pin": {"summary": "Keep it, whatever happens to the others", "value": {"pinned": True}},
    "expire": {
        "summary": "Let go of it, and have it deleted at that time",
        "value": {"pinned": False, "expires_at": "2030-01-31T12:00:00Z"},
    },
    "never": {"summary": "Never expire", "value": {"expires_at": None}},
}
