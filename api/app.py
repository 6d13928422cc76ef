"""The application: middlewares from the outermost in, then one router a resource."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version

import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware

from api.artifacts.endpoints import router as artifacts
from api.attempts.endpoints import router as attempts
from api.auth import Authenticator
from api.checkpoints.endpoints import router as checkpoints
from api.events.endpoints import router as events
from api.files.endpoints import router as files
from api.health.endpoints import router as health
from api.health.metrics import JobCollector
from api.http import errors, openapi
from api.http.hosts import AllowedHosts
from api.http.intake import check_request
from api.http.middleware.authentication import AuthenticationMiddleware
from api.http.middleware.body_limit import BodyLimitMiddleware
from api.http.middleware.metrics import MetricsMiddleware, RequestMetrics
from api.http.middleware.request_id import RequestIdMiddleware
from api.http.parameters import only_known_parameters
from api.jobs.endpoints import router as jobs
from api.jobs.polling import JobPolling
from api.keys.endpoints import router as keys
from api.logs.endpoints import router as logs
from api.metrics.endpoints import router as metrics
from api.models.endpoints import router as models
from api.services import Services
from api.workers.endpoints import router as workers
from store.settings import Settings

# A job is a page of JSON; a fork's overrides too. Files have their own limit.
MAX_BODY_BYTES = 1 << 20


def create_app(settings: Settings) -> FastAPI:
    """The API over the store that `settings` name. Connects to nothing until the first request."""
    services = Services.of(settings)
    registry = CollectorRegistry()
    registry.register(JobCollector(services.database))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
        yield
        await anyio.to_thread.run_sync(services.close)

    app = FastAPI(
        title="MiniLLM distillation service",
        summary="Turns a large language model into a small one.",
        description=openapi.DESCRIPTION,
        version=_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
        middleware=[
            Middleware(RequestIdMiddleware),
            Middleware(MetricsMiddleware, metrics=RequestMetrics(registry)),
            Middleware(
                AuthenticationMiddleware,
                authenticate=Authenticator(settings, services.database, services.lookups),
                hosts=AllowedHosts(settings.allowed_hosts),
            ),
            Middleware(JobPolling, services=services),
            Middleware(
                BodyLimitMiddleware,
                max_body_bytes=MAX_BODY_BYTES,
                upload_path="/v1/files",
                max_file_bytes=settings.max_file_bytes,
            ),
        ],
    )
    app.state.services = services
    app.state.registry = registry
    errors.install(app)
    # The middleware does the checking; this says so in the OpenAPI document.
    bearer = Depends(HTTPBearer(auto_error=False, description="An API key, once any exists."))
    # In the order of how often they are asked: the framework tries one after the other.
    for router in (jobs, events, metrics, files, models, logs, attempts, checkpoints, artifacts, workers, keys):
        dependencies = [bearer, Depends(check_request), Depends(only_known_parameters)]
        app.include_router(router, dependencies=dependencies)
        app.include_router(_heads(router), dependencies=dependencies)
    app.include_router(health)
    app.include_router(_heads(health))
    openapi.install(app)
    return app


def _heads(router: APIRouter) -> APIRouter:
    """HEAD for every GET (RFC 9110, 9.1): the same endpoint, whose body the server leaves out."""
    heads = APIRouter()
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            heads.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=None,
                openapi_extra=route.openapi_extra,
                include_in_schema=False,
            )
    return heads


def _version() -> str:
    try:
        return version("minillm-service")
    except PackageNotFoundError:
        return "0.0.0+source"
