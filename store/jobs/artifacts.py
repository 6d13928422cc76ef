"""What jobs leave behind: their outputs as rows, from what a trainer announces to what a worker has verified."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from minillm_core.spec import Manifest
from store.db.clock import database_now
from store.db.errors import UnverifiedArtifact
from store.db.ids import new_id
from store.db.tables import Artifact, Attempt, Job
from store.jobs.vocabulary import ArtifactKind, ArtifactState


class ArtifactRepository:
    """Artifacts of a job that the caller has got through its owner, or holds."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def verified(self, job: Job, kind: ArtifactKind) -> Artifact | None:
        """What the job has to offer of this kind; None where there is nothing yet."""
        statement = select(Artifact).where(
            Artifact.job_id == job.id, Artifact.kind == kind, Artifact.state == ArtifactState.VERIFIED
        )
        return self.session.scalar(statement.order_by(Artifact.attempt.desc(), Artifact.id.desc()).limit(1))

    def announce(
        self,
        attempt: Attempt,
        kind: ArtifactKind,
        *,
        path: str,
        manifest_sha256: str,
        bytes: int,
        parameters: int | None = None,
        now: dt.datetime | None = None,
    ) -> Artifact:
        """Note what the trainer says that it has committed in the folder ``path`` of its run folder."""
        row = self._of_attempt(attempt, kind, path)
        if row is None:
            row = Artifact(id=new_id("art"), job_id=attempt.job_id, attempt=attempt.number, kind=kind, path=path)
            row.created_at = now or database_now(self.session)
            self.session.add(row)
        row.state = ArtifactState.ANNOUNCED
        row.manifest_sha256 = manifest_sha256
        row.bytes = bytes
        row.parameters = parameters
        self.session.flush()
        return row

    def verify(self, attempt: Attempt, kind: ArtifactKind, manifest: bytes) -> Artifact:
        """Note that every file is as ``manifest`` says, which the caller has looked at.

        Raises UnverifiedArtifact where this attempt announced none of this kind with just this manifest.
        """
        announced = select(Artifact).where(Artifact.job_id == attempt.job_id, Artifact.attempt == attempt.number)
        digest = hashlib.sha256(manifest).hexdigest()
        row = self.session.scalar(announced.where(Artifact.kind == kind, Artifact.manifest_sha256 == digest).limit(1))
        what = f"the manifest of the {kind} of {attempt.job_id}, attempt {attempt.number},"
        if row is None:
            raise UnverifiedArtifact(f"{what} is not one that its trainer reported")
        try:
            said = Manifest.read(manifest).kind
        except ValueError as error:
            raise UnverifiedArtifact(f"{what} cannot be read") from error
        if said != kind:
            raise UnverifiedArtifact(f"{what} is one of a {said}")
        row.state = ArtifactState.VERIFIED
        row.manifest = manifest.decode()
        self.session.flush()
        return row

    def missing(self, attempt: Attempt, required: Collection[ArtifactKind]) -> set[ArtifactKind]:
        """Those of ``required`` that the attempt has not left verified."""
        found = select(Artifact.kind).where(
            Artifact.job_id == attempt.job_id,
            Artifact.attempt == attempt.number,
            Artifact.state == ArtifactState.VERIFIED,
        )
        return set(required) - set(self.session.scalars(found))

    def _of_attempt(self, attempt: Attempt, kind: ArtifactKind, path: str) -> Artifact | None:
        return self.session.scalar(
            select(Artifact).where(
                Artifact.job_id == attempt.job_id,
                Artifact.attempt == attempt.number,
                Artifact.kind == kind,
                Artifact.path == path,
            )
        )
