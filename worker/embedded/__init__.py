"""The whole service by one command."""
