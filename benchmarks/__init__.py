"""What the service costs and what it withstands: ``python -m benchmarks.NAME``, the last line is one JSON object."""

import os

# As the trainer does for itself, before torch is loaded; the peers' processes inherit it.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
