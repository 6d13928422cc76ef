"""Models that a job may name: `/v1/models`."""
