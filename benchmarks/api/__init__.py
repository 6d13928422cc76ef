"""How fast the API answers, beside a bare route: `python -m benchmarks.api`."""
