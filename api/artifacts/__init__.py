"""The finished student of a job: `/v1/jobs/{id}/artifact`."""
