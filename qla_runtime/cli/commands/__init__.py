"""One file per command of ``qla``, or per close group of them.

Each has ``add(commands)``, which adds the command with its arguments. ``program.COMMANDS`` lists the files.
"""

from __future__ import annotations
