"""Inputs of jobs, and a job in a process that is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli_tools
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


def killed(arguments: list[str], parts: Path, after: int) -> None:
    """Runs ``qla``, and kills it with -9 as soon as it has written so many parts."""
    process = subprocess.Popen(
        [*cli_tools.COMMAND, *arguments],
        env=cli_tools.ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while len(list(parts.glob("part-*"))) < after:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    if process.stderr:
        process.stderr.close()


def at_step(step: int, arguments: list[str]) -> int:
    """Runs ``qla`` in a process that ends itself with -9 before its ``step``-th change to a name or a file's end.

    Returns:
        The exit status; 0 where the job has fewer steps.
    """
    script = (
        "import os, shutil, signal, sys\n"
        "left = int(sys.argv[1])\n"
        "def deadly(call):\n"
        "    def counted(*arguments, **options):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return call(*arguments, **options)\n"
        "    return counted\n"
        "for name in ('replace', 'fsync', 'unlink', 'rmdir', 'mkdir'): setattr(os, name, deadly(getattr(os, name)))\n"
        "from qla_runtime.cli import main\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, str(step), *arguments], env=cli_tools.ENVIRONMENT, capture_output=True
    ).returncode
