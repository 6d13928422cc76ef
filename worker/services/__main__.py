from __future__ import annotations

import sys

from worker.services.sweeper import main

sys.exit(main())
