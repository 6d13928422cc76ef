"""What the tests of faults share: a service and its programs, and a broker that can die."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.broker import broker, make_broker
from tests.fixtures.play import Service, environment, service, settings
from tests.fixtures.process import mark, start
from tests.fixtures.sweep import Sweeper

__all__ = ["broker", "environment", "make_broker", "mark", "service", "settings", "start"]

DYING = str(Path(__file__).with_name("dying.py"))


def sweeper_of(service: Service, **changes: object) -> Sweeper:
    """A sweeper in this process, with its settings changed."""
    settings = service.settings.model_copy(update=changes)
    return Sweeper(service.database, settings)
