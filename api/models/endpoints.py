"""GET /v1/models: the folders under the models root, and the caller's own students."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.auth import CallerDep
from api.deps import ReadSession, ServicesDep, TransactionRoute
from api.http.openapi import problems
from api.http.pagination import After, Before, Limit, Order, Page, cursor_problems, page
from api.models.schemas import ModelOut
from store.models import ModelRepository

router = APIRouter(route_class=TransactionRoute, prefix="/v1", tags=["models"])


@router.get("/models", responses=problems(401, 422, 503), summary="List models")
def models_list(
    caller: CallerDep,
    services: ServicesDep,
    session: ReadSession,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    order: Order = "desc",
    kind: Annotated[Literal["base", "adapter", "student"] | None, Query()] = None,
) -> Page[ModelOut]:
    """Models that a job may name. Folders put under the models root appear here by themselves, with what is wrong."""
    services.models.refresh()
    with cursor_problems(after, before):
        found = ModelRepository(session).list(
            caller.owner_id, limit=limit, after=after, before=before, order=order, kind=kind
        )
    return page(found.items, found.has_more, ModelOut.model_validate, lambda model: model.id)


@router.get("/models/{model_id}", responses=problems(401, 404, 503), summary="Get a model")
def models_get(model_id: str, caller: CallerDep, services: ServicesDep, session: ReadSession) -> ModelOut:
    """By its id, or by its reference such as `path:<folder>`."""
    services.models.refresh()
    return ModelOut.model_validate(ModelRepository(session).get(caller.owner_id, model_id))
