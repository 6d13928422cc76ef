"""What happened to a job: `/v1/jobs/{id}/events`, as a list or as a stream."""
