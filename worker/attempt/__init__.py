"""One attempt of a job, supervised."""
