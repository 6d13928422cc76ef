"""Which media type an answer takes, by the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

JSON = "application/json"
JSONL = "application/jsonl"
CSV = "text/csv"
TEXT = "text/plain"
EVENT_STREAM = "text/event-stream"

ANY_TEXT = {"schema": {"type": "string"}}
"""What OpenAPI says of an answer that is no JSON."""


def accepted(header: str | None, offered: Sequence[str]) -> str | None:
    """The first of `offered` media types that an Accept header wants most, or None.

    Without a header, or among equals, the earlier offer wins.
    """
    if not header:
        return offered[0]
    best: tuple[float, str | None] = (0.0, None)
    wanted = []
    for part in header.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [piece.removeprefix("q=") for piece in parameters if piece.startswith("q=")]
        try:
            wanted.append((media, float(weights[0]) if weights else 1.0))
        except ValueError:
            wanted.append((media, 0.0))
    for offer in offered:
        family = offer.split("/")[0] + "/*"
        # The most specific match decides.
        for pattern in (offer, family, "*/*"):
            weights_of = [weight for media, weight in wanted if media == pattern]
            if weights_of:
                if weights_of[0] > best[0]:
                    best = (weights_of[0], offer)
                break
    return best[1]
