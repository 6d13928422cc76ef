"""A job has a kind, and its outputs are rows of their own: the student's columns of jobs move there."""

from __future__ import annotations

import os
import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MOVED = {
    "student_model_id": sa.String(length=40),
    "student_path": sa.Text(),
    "student_manifest_sha256": sa.Text(),
    "student_manifest": sa.Text(),
    "student_bytes": sa.BigInteger(),
    "student_parameters": sa.BigInteger(),
}
JOBS = sa.table(
    "jobs",
    sa.column("id", sa.String()),
    sa.column("updated_at", sa.DateTime(timezone=True)),
    *(sa.column(name, type_) for name, type_ in MOVED.items()),
)
ARTIFACTS = sa.table(
    "artifacts",
    *(sa.column(name, sa.String()) for name in ("id", "job_id", "kind", "state", "path", "model_id")),
    *(sa.column(name, sa.Text()) for name in ("manifest_sha256", "manifest")),
    *(sa.column(name, sa.BigInteger()) for name in ("attempt", "bytes", "parameters")),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
BATCH = 500


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(length=32), server_default="distillation", nullable=False))
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("model_id", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifacts_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.UniqueConstraint("job_id", "attempt", "kind", "path", name="uq_artifacts_job_id_attempt_kind_path"),
    )
    connection = op.get_bind()
    left = sa.select(JOBS).where(JOBS.c.student_path.is_not(None)).order_by(JOBS.c.id).limit(BATCH)
    last = ""
    while jobs := connection.execute(left.where(JOBS.c.id > last)).all():
        last = jobs[-1].id
        connection.execute(sa.insert(ARTIFACTS), [artifact_of(job) for job in jobs])
    for name in MOVED:
        op.drop_column("jobs", name)


def artifact_of(job: sa.Row) -> dict[str, object]:
    _runs, _job, attempt, path = job.student_path.split("/", 3)
    return {
        "id": new_id(),
        "job_id": job.id,
        "attempt": int(attempt),
        "kind": "student",
        "state": "announced" if job.student_manifest is None else "verified",
        "path": path,
        "manifest_sha256": job.student_manifest_sha256,
        "manifest": job.student_manifest,
        "bytes": job.student_bytes or 0,
        "parameters": job.student_parameters,
        "model_id": job.student_model_id,
        "created_at": job.updated_at,
    }


def new_id() -> str:
    """As store.db.ids made them when this was written."""
    value = ((time.time_ns() // 1_000_000) << 80) | int.from_bytes(os.urandom(10))
    return "art_" + "".join("0123456789abcdefghjkmnpqrstvwxyz"[(value >> shift) & 31] for shift in range(125, -1, -5))


def downgrade() -> None:
    for name, type_ in MOVED.items():
        op.add_column("jobs", sa.Column(name, type_, nullable=True))
    connection = op.get_bind()
    left = sa.select(ARTIFACTS).where(ARTIFACTS.c.kind == "student").order_by(ARTIFACTS.c.attempt, ARTIFACTS.c.id)
    for row in connection.execute(left).all():
        moved = {
            "student_model_id": row.model_id,
            "student_path": f"runs/{row.job_id}/{row.attempt}/{row.path}",
            "student_manifest_sha256": row.manifest_sha256,
            "student_manifest": row.manifest,
            "student_bytes": row.bytes,
            "student_parameters": row.parameters,
        }
        connection.execute(sa.update(JOBS).where(JOBS.c.id == row.job_id).values(moved))
    op.drop_table("artifacts")
    op.drop_column("jobs", "kind")
