"""``python -m tests.record_losses [METHOD ...]``: record the losses that the slow test compares with.

To be run where a change is meant to move them; the change's message gives the losses before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from tests import real_runs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.record_losses", description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(real_runs.METHODS)}; all of them")
    methods = parser.parse_args().methods or list(real_runs.METHODS)
    os.environ["OMP_NUM_THREADS"] = str(real_runs.THREADS)
    recorded = json.loads(real_runs.RECORD.read_text()) if real_runs.RECORD.exists() else {}
    for name in methods:
        with tempfile.TemporaryDirectory() as folder:
            found = real_runs.real_losses(Path(folder) / name, name)
        rounded = [round(value, 6) for value in found]
        place, key = (recorded, name)
        if name in real_runs.SAMPLED:
            place, key = recorded.setdefault(name, {}), real_runs.processor()
        before = place.get(key)
        place[key] = rounded
        print(f"{name}: {rounded}" + (f" (before: {before})" if before not in (None, rounded) else ""))
        real_runs.RECORD.parent.mkdir(exist_ok=True)
        real_runs.RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
