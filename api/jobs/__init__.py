"""Distillation jobs and what they leave behind: `/v1/jobs`."""
