"""What a job needs of a worker's devices, as columns that a claim can ask for."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JOBS = sa.table("jobs", sa.column("id", sa.String()), sa.column("spec", sa.Text()), sa.column("gpus", sa.BigInteger()))


def upgrade() -> None:
    op.add_column("jobs", sa.Column("gpus", sa.BigInteger(), server_default="1", nullable=False))
    op.add_column("jobs", sa.Column("gpu_memory", sa.BigInteger(), nullable=True))
    connection = op.get_bind()
    batch = sa.select(JOBS.c.id, JOBS.c.spec).order_by(JOBS.c.id).limit(1000)
    last = ""
    while rows := connection.execute(batch.where(JOBS.c.id > last)).all():
        last = rows[-1].id
        for id, spec in rows:
            if (gpus := _gpus(spec)) > 1:
                connection.execute(sa.update(JOBS).where(JOBS.c.id == id).values(gpus=gpus))


def _gpus(spec: str) -> int:
    try:
        document: Any = json.loads(spec)
        return int(document["resources"]["gpus"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return 1


def downgrade() -> None:
    op.drop_column("jobs", "gpu_memory")
    op.drop_column("jobs", "gpus")
