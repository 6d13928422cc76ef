"""What depends on the kind of a job: the one table that another kind is added to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from store.jobs.vocabulary import ArtifactKind


@dataclass(frozen=True)
class Kind:
    """One kind of job."""

    required: frozenset[ArtifactKind]
    """What an attempt must have left, verified, for the job to have succeeded."""


KINDS: Mapping[str, Kind] = {"distillation": Kind(required=frozenset({ArtifactKind.STUDENT}))}
"""By ``Job.kind``, which is the `kind` of its spec (:data:`minillm_core.spec.SPECS`)."""
