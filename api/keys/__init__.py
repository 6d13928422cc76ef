"""API keys: `/v1/api_keys`."""
