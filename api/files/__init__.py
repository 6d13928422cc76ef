"""Uploaded datasets: `/v1/files`."""
