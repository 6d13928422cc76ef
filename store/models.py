"""Models that a job may name: those of the folders under the models root, and students made here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Select, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store.bytes.model_folders import FoundFolder
from store.db.clock import database_now
from store.db.errors import NotFound
from store.db.ids import new_id
from store.db.paging import Order, Page, page
from store.db.tables import Job, Model

logger = logging.getLogger(__name__)

FOLDER_KINDS = ("base", "adapter")
"""Kinds of models that are folders under the models root."""


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
        """A page of visible models. Raises NotFound for a cursor that is no id of a model, or of one not visible."""
        statement = self._visible(owner_id)
        if kind is not None:
            statement = statement.where(Model.kind == kind)
        return page(
            self.session,
            statement,
            Model.created_at,
            Model.id,
            prefix="model",
            within=_owned(owner_id),
            limit=limit,
            order=order,
            after=after,
            before=before,
        )

    def update_folders(self, found: Iterable[FoundFolder]) -> None:
        """Make the models of everyone those of the folders found; those whose folder is gone are forgotten.

        A folder that cannot be used has a row too, with its problems.
        """
        rows = {row.reference: row for row in self.session.scalars(select(Model).where(Model.kind.in_(FOLDER_KINDS)))}
        for folder in found:
            values: dict[str, Any] = {
                "kind": folder.kind,
                "problems": [asdict(problem) for problem in folder.inspection.problems] or None,
                **folder.inspection.description.columns(),
            }
            row = rows.pop(folder.reference, None)
            if row is None:
                self._add(folder, values)
                continue
            for column, value in values.items():
                setattr(row, column, value)
        for row in rows.values():
            self.session.delete(row)
        self.session.flush()

    def of_older_fingerprints(self, version: str, without: Collection[str], limit: int = 20) -> Sequence[Model]:
        """Students whose tokenizer's fingerprint does not begin with ``version``, but those of ids in ``without``."""
        statement = select(Model).where(Model.kind == "student", ~Model.tokenizer_fingerprint.startswith(version))
        found = self.session.scalars(statement.order_by(Model.created_at.desc(), Model.id).limit(limit + len(without)))
        return [row for row in found if row.id not in without][:limit]

    def set_fingerprint(self, model_id: str, fingerprint: str) -> None:
        """Say anew what a model's tokenizer does."""
        self.session.execute(update(Model).where(Model.id == model_id).values(tokenizer_fingerprint=fingerprint))

    def _add(self, folder: FoundFolder, values: dict[str, Any]) -> None:
        row = Model(
            id=new_id("model"),
            owner_id=None,
            reference=folder.reference,
            name=folder.name,
            path=folder.name,
            created_at=database_now(self.session),
            **values,
        )
        try:
            with self.session.begin_nested():
                self.session.add(row)
        except IntegrityError:
            # Another process was first, or two names are told alike: one row is as good.
            logger.info("%s is registered already", folder.reference)

    def _visible(self, owner_id: str) -> Select[Model]:
        gone = select(Job.id).where(Job.id == Model.job_id, Job.deleting.is_(True)).exists()
        return select(Model).where(_owned(owner_id), ~gone)


def _owned(owner_id: str) -> ColumnElement[bool]:
    return or_(Model.owner_id.is_(None), Model.owner_id == owner_id)
