"""``python -m tests.record_losses [METHOD ...]``: record the losses and draws that the slow test compares with.

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
            draws = real_runs.Draws()
            found = real_runs.real_losses(Path(folder) / name, name, draws)
        rounded = [round(value, 6) for value in found]
        before = recorded.get(name, {}).get("losses")
        recorded[name] = {"losses": rounded, "draws": draws.drawn}
        print(f"{name}: {rounded}" + (f" (before: {before})" if before not in (None, rounded) else ""))
        real_runs.RECORD.parent.mkdir(exist_ok=True)
        real_runs.RECORD.write_text(json.dumps(recorded, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
