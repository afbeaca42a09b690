"""Whole files on one machine: the room of ``qla embed`` and ``qla classify --in``.

=========== ==============================================================================================
``options`` what a job may be told: columns, kinds of vectors, and so on
``readers`` Parquet, JSON lines and text lines, window by window, from any window's beginning
``lines``   the lines of a text file, and what is wrong with them
``order``   the texts of a window by length, and their results in the old order
``work``    what a job adds to each row: a vector or a label
``writer``  the parts of an unfinished job, and the file that they become
``job``     one job from its input to its output; resumes where an earlier process ended
=========== ==============================================================================================

A job reads a window of rows, runs the model on their texts, writes the window's rows as a part, and forgets them.
The windows depend on the input alone. So a job that was killed goes on behind its last part, and its output has
the bytes that an uninterrupted job writes.

All modules but this one need pyarrow.
"""

from __future__ import annotations

import importlib.util

from qla_runtime.errors import UnsupportedError

__all__ = ["require_packages"]


def require_packages() -> None:
    """Checks that this interpreter can read and write Parquet.

    Raises:
        UnsupportedError: pyarrow is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UnsupportedError(
            "reading and writing whole files needs pyarrow, not installed here. Run: "
            "pip install 'qla_runtime[bulk]'"
        )
