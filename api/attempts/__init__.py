"""Who tried a job, and how each attempt ended: `/v1/jobs/{id}/attempts`."""
