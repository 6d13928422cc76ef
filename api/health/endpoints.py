"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from api.deps import ServicesDep, TransactionRoute
from api.http.disk import free_bytes
from api.http.openapi import problems
from api.http.problems import Unavailable
from api.http.schema import Out
from api.services import Services
from store.broker import BROKER_ERRORS
from store.db import schema
from store.db.database import DATABASE_AWAY

router = APIRouter(route_class=TransactionRoute, tags=["health"])
_BROKER_SECONDS = 2


class Health(Out):
    status: Literal["ok"]


class Readiness(Out):
    status: Literal["ready", "degraded"]
    """`degraded`: the broker does not answer; jobs still run, workers find them by polling."""
    checks: dict[str, str]
    """`ok` or what is wrong with the database, the migrations, the broker and the disk."""


@router.get("/healthz", summary="Whether the process answers")
def health_live() -> Health:
    return Health(status="ok")


@router.get("/readyz", responses=problems(503), summary="Whether requests can be served")
def health_ready(services: ServicesDep) -> Readiness:
    """503 without the database, its newest migration or disk space; its `checks` say which."""
    checks = {
        "database": _database(services),
        "migrations": "not checked",
        "broker": _broker(services),
        "disk": _disk(services),
    }
    if checks["database"] == "ok":
        checks["migrations"] = _migrations(services)
    failed = [name for name in ("database", "migrations", "disk") if checks[name] != "ok"]
    if failed:
        reasons = "; ".join(f"{name}: {checks[name]}" for name in failed)
        raise Unavailable(f"Not ready. {reasons}.", code="not_ready", extensions={"checks": checks})
    return Readiness(status="ready" if checks["broker"] == "ok" else "degraded", checks=checks)


def _database(services: Services) -> str:
    try:
        with services.database.read() as session:
            services.database.now(session)
    except DATABASE_AWAY as error:
        return type(error).__name__
    return "ok"


def _migrations(services: Services) -> str:
    return "ok" if schema.at_head(services.database.engine) else "behind the code: run python -m migrations"


def _broker(services: Services) -> str:
    try:
        with services.celery.connection_for_write(connect_timeout=_BROKER_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_BROKER_SECONDS)
    except BROKER_ERRORS as error:
        return type(error).__name__
    return "ok"


def _disk(services: Services) -> str:
    free = free_bytes(services.settings.data_dir)
    return "ok" if free >= services.settings.min_free_bytes else f"only {free:,} bytes free"


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text format."}, **problems(401, 503)},
    response_class=Response,
    summary="Metrics for Prometheus",
)
def health_metrics(request: Request) -> Response:
    """Requests by route and status, jobs by state, workers online. Needs a key like everything but health."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
