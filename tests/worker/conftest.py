"""What the tests of this room share."""

from __future__ import annotations

from tests.fixtures.play import OWNER, SHORT_LEASE, Service, environment, service, settings
from tests.fixtures.process import mark, start, wait_until

__all__ = ["OWNER", "SHORT_LEASE", "Service", "environment", "mark", "service", "settings", "start", "wait_until"]
