"""Indexes of the queue in its order, of deadlines, forks, expiries and deletions, and of metrics by step and names."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PLAIN = {
    "ix_jobs_owner_id_state_created_at_id": ("jobs", ["owner_id", "state", "created_at", "id"]),
    "ix_jobs_state_deadline_at": ("jobs", ["state", "deadline_at"]),
    "ix_jobs_forked_from": ("jobs", ["forked_from"]),
    "ix_checkpoints_expires_at": ("checkpoints", ["expires_at"]),
    "ix_files_expires_at": ("files", ["expires_at"]),
    "ix_metric_points_job_id_phase_step_names_key": ("metric_points", ["job_id", "phase", "step", "names_key"]),
}
OF_THE_FEW = ("jobs", "checkpoints", "files")


def upgrade() -> None:
    op.add_column("metric_points", sa.Column("names_key", sa.BigInteger(), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        key = '(SELECT group_concat(key, char(10)) FROM json_each(metric_points."values"))'
        op.get_bind().connection.driver_connection.create_function("hash", 1, hash_of, deterministic=True)
        op.execute(f"UPDATE metric_points SET names_key = hash({key})")
    else:
        key = "(SELECT string_agg(key, E'\\n' ORDER BY key) FROM json_object_keys(metric_points.\"values\") AS key)"
        op.execute(f"UPDATE metric_points SET names_key = hashtextextended({key}, 0)")
    op.create_index("ix_jobs_queue", "jobs", ["state", sa.text("priority DESC"), "created_at", "id"])
    op.drop_index("ix_jobs_state_priority_created_at_id", "jobs")
    for name, (table, columns) in PLAIN.items():
        op.create_index(name, table, columns)
    deleting = sa.column("deleting", sa.Boolean()).is_(True)
    for table in OF_THE_FEW:
        op.create_index(f"ix_{table}_deleting", table, ["id"], sqlite_where=deleting, postgresql_where=deleting)


def hash_of(names: str | None) -> int:
    return int.from_bytes(hashlib.blake2b((names or "").encode(), digest_size=8).digest(), signed=True)


def downgrade() -> None:
    for table in OF_THE_FEW:
        op.drop_index(f"ix_{table}_deleting", table)
    for name, (table, _) in PLAIN.items():
        op.drop_index(name, table)
    op.create_index("ix_jobs_state_priority_created_at_id", "jobs", ["state", "priority", "created_at", "id"])
    op.drop_index("ix_jobs_queue", "jobs")
    op.drop_column("metric_points", "names_key")
