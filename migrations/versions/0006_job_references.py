"""What each job names, as rows with an index: nobody searches the text of every spec for an id any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FIELDS = (
    ("model", ("teacher", "model")),
    ("adapter", ("teacher", "adapter")),
    ("model", ("student", "model")),
    ("file", ("dataset", "file")),
    ("file", ("pretrain_corpus", "file")),
    ("file", ("evaluation", "calibration_file")),
)
LONGEST = 500
BATCH = 500
JOBS = sa.table("jobs", sa.column("id", sa.String()), sa.column("spec", sa.Text()))


def upgrade() -> None:
    table = op.create_table(
        "job_references",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("reference", sa.String(length=LONGEST), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_references_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "kind", "reference", name="pk_job_references"),
    )
    connection = op.get_bind()
    jobs = sa.select(JOBS).order_by(JOBS.c.id).limit(BATCH)
    last = ""
    while found := connection.execute(jobs.where(JOBS.c.id > last)).all():
        last = found[-1].id
        rows = [
            {"job_id": id, "kind": kind, "reference": reference}
            for id, spec in found
            for kind, reference in sorted(set(named(spec)))
        ]
        if rows:
            connection.execute(sa.insert(table), rows)
    op.create_index("ix_job_references_reference_job_id", "job_references", ["reference", "job_id"])


def named(spec: str) -> Iterator[tuple[str, str]]:
    try:
        document: Any = json.loads(spec)
    except (ValueError, RecursionError):
        return
    for kind, path in FIELDS:
        value = document
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str) and len(value) <= LONGEST and not (kind == "file" and value.startswith("path:")):
            yield kind, value


def downgrade() -> None:
    op.drop_table("job_references")
