"""Inputs of jobs, and a job in a process that is killed on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MODEL = "all-minilm-l6-v2"
WORDS = "a bird sings on the old roof while rain falls over quiet streets and nobody hears the last train".split()


def sentences(count: int) -> list[str]:
    """Different sentences of 1 to 40 words, the same at every call."""
    return [" ".join(WORDS[(i + j * j) % len(WORDS)] for j in range(1 + i * 7 % 40)) for i in range(count)]


def table(count: int) -> pa.Table:
    """Rows with an id, a text, and columns of other types."""
    return pa.table(
        {
            "id": pa.array(range(1000, 1000 + count), pa.int64()),
            "text": sentences(count),
            "tags": [[{"name": "n", "weight": i / 2}] for i in range(count)],
        }
    )


def write(path: Path, rows: pa.Table, **options: Any) -> Path:
    pq.write_table(rows, path, **options)
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A .jsonl file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_killed_at(step: int, job: Callable[[], object]) -> bool:
    """Runs a job in a forked process, which kills itself before its ``step``-th change of a file's name or end.

    Returns:
        Whether it was killed; else the job has fewer steps, and ended as usual.
    """
    child = os.fork()
    if child == 0:
        left = step
        signal.alarm(60)

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counted

        for name in ("mkdir", "fsync", "replace", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            job()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0
