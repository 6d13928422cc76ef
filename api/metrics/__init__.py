"""What was measured on the way: `/v1/jobs/{id}/metrics`."""
