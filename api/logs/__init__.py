"""What the trainer wrote: `/v1/jobs/{id}/logs`."""
