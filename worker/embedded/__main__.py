from __future__ import annotations

import sys

from worker.embedded.up import main

sys.exit(main())
