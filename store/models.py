"""The registry of models: base models under the models root, and students made here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from store.bytes.model_folders import ModelDescription, NotAModel, describe
from store.db.clock import database_now
from store.db.errors import NotFound
from store.db.ids import new_id
from store.db.paging import Order, Page, page
from store.db.tables import Job, Model

logger = logging.getLogger(__name__)


class ModelRepository:
    """Models that an owner may use: everyone's and the owner's own students."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def get(self, owner_id: str, id_or_reference: str) -> Model:
        """By id, or by how a spec names it (`path:<name>`, `model_...`). Raises NotFound."""
        row = self.session.scalar(
            self._visible(owner_id).where(or_(Model.id == id_or_reference, Model.reference == id_or_reference))
        )
        if row is None:
            raise NotFound("model", id_or_reference)
        return row

    def list(
        self,
        owner_id: str,
        *,
        limit: int = 20,
        order: Order = "desc",
        after: str | None = None,
        before: str | None = None,
        kind: str | None = None,
    ) -> Page[Model]:
        """A page of visible models. Raises NotFound for an unknown cursor."""
        cursor = after or before
        if cursor is not None:
            self.get(owner_id, cursor)
        statement = self._visible(owner_id)
        if kind is not None:
            statement = statement.where(Model.kind == kind)
        return page(
            self.session, statement, Model.created_at, Model.id, limit=limit, order=order, after=after, before=before
        )

    def register(self, name: str, description: ModelDescription, *, revision: str | None = None) -> Model:
        """Enter (or bring up to date) the base model in the folder ``name`` under the models root."""
        reference = f"path:{name}"
        row = self.session.scalar(select(Model).where(Model.reference == reference))
        if row is None:
            row = Model(
                id=new_id("model"),
                owner_id=None,
                reference=reference,
                kind="base",
                name=name,
                path=name,
                revision=revision,
                created_at=database_now(self.session),
                **description.columns(),
            )
            self.session.add(row)
        else:
            row.revision = revision
            for column, value in description.columns().items():
                setattr(row, column, value)
        self.session.flush()
        return row

    def scan(self, models_root: Path) -> Sequence[Model]:
        """Register every model folder right under ``models_root``; forget base models whose folder is gone.

        Folders that hold no readable model, hidden ones and links are left out with a warning.
        """
        found = []
        for folder in sorted(models_root.iterdir()) if models_root.is_dir() else []:
            if folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
                continue
            try:
                found.append(self.register(folder.name, describe(folder)))
            except (NotAModel, OSError) as error:
                logger.warning("not registered as a model: %s", error)
        kept = {row.id for row in found}
        for row in self.session.scalars(select(Model).where(Model.kind == "base")).all():
            if row.id not in kept and not (models_root / row.path).is_dir():
                self.session.delete(row)
        self.session.flush()
        return found

    def _visible(self, owner_id: str) -> Select[Model]:
        gone = select(Job.id).where(Job.id == Model.job_id, Job.deleting.is_(True)).exists()
        return select(Model).where(or_(Model.owner_id.is_(None), Model.owner_id == owner_id), ~gone)
