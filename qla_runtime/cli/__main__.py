"""``python -m qla_runtime.cli``."""

from __future__ import annotations

import sys

from qla_runtime.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
