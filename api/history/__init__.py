"""What happened in a job: events, metrics, logs, attempts, all under `/v1/jobs/{id}`."""
