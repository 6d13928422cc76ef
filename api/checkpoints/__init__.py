"""Checkpoints of a job, under `/v1/jobs/{id}/checkpoints`: read, pin, set to expire, delete."""
