"""Sampling: KV-cached decoding, drawing from the mixture of student and teacher, scoring."""
