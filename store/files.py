"""Uploaded files: their rows. The content is in :mod:`store.bytes.blobs` under the same id."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.db.clock import database_now
from store.db.errors import Conflict, NotFound
from store.db.paging import Order, Page, page
from store.db.printable import printable
from store.db.tables import File
from store.jobs import references


class FileRepository:
    """Files; those being deleted are not found."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def create(
        self,
        *,
        id: str,
        owner_id: str,
        filename: str,
        purpose: str,
        bytes: int,
        sha256: str,
        lines: int | None = None,
        expires_at: dt.datetime | None = None,
    ) -> File:
        """The row of a blob that is already written under ``id`` (``new_id("file")``)."""
        row = File(
            id=id,
            owner_id=owner_id,
            filename=printable(filename),
            purpose=purpose,
            bytes=bytes,
            sha256=sha256,
            lines=lines,
            deleting=False,
            expires_at=expires_at,
            created_at=database_now(self.session),
        )
        self.session.add(row)
        self.session.flush()
        return row

    def get(self, owner_id: str, file_id: str) -> File:
        """Raises NotFound, also for someone else's."""
        row = self.session.scalar(
            select(File).where(File.id == file_id, File.owner_id == owner_id, File.deleting.is_(False))
        )
        if row is None:
            raise NotFound("file", file_id)
        return row

    def list(
        self,
        owner_id: str,
        *,
        limit: int = 20,
        order: Order = "desc",
        after: str | None = None,
        before: str | None = None,
        purpose: str | None = None,
    ) -> Page[File]:
        """A page of the owner's files. Raises NotFound for a cursor that is no file's id, or another owner's."""
        statement = select(File).where(File.owner_id == owner_id, File.deleting.is_(False))
        if purpose is not None:
            statement = statement.where(File.purpose == purpose)
        return page(
            self.session,
            statement,
            File.created_at,
            File.id,
            prefix="file",
            within=File.owner_id == owner_id,
            limit=limit,
            order=order,
            after=after,
            before=before,
        )

    def request_delete(self, file: File) -> None:
        """Mark it for deletion; a sweep finishes it.

        Raises Conflict(`in_use`) while an unfinished job names it, and NotFound where it is gone by now.
        """
        # Under its lock, which the making of a job that names it waits for.
        row = self.session.get(File, file.id, with_for_update=True, populate_existing=True)
        if row is None or row.deleting:
            raise NotFound("file", file.id)
        job = references.unfinished_user(self.session, file.id)
        if job is not None:
            raise Conflict("in_use", f"the unfinished job {job} uses this file")
        row.deleting = True
        self.session.flush()

    def expire(self, now: dt.datetime, limit: int = 100) -> None:
        """Mark the files whose ``expires_at`` has passed; one that an unfinished job names goes once that has ended."""
        free_now = ~references.is_used(File.id)
        due = select(File).where(File.expires_at <= now, File.deleting.is_(False), free_now).limit(limit)
        held = list(self.session.scalars(due.with_for_update(skip_locked=True)))
        # Asked again under the locks: a job may have been made since.
        free = select(File.id).where(File.id.in_([file.id for file in held]), free_now)
        for id in list(self.session.scalars(free)):
            self.session.get_one(File, id).deleting = True
        self.session.flush()

    def purge(self, file_id: str) -> None:
        """Remove the row of one marked for deletion, once its blob is gone. Again is no error."""
        self.session.execute(delete(File).where(File.id == file_id, File.deleting.is_(True)))
