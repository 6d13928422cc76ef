"""Who runs jobs: `/v1/workers`."""
