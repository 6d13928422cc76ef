"""What happened in a job: events, metrics, checkpoints, logs, attempts, all under `/v1/jobs/{id}`."""
