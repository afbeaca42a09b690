"""The command ``qla`` as a program."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import qla_runtime
from qla_runtime.cli import program

SOURCE = Path(qla_runtime.__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCE.parent), "PYTHONIOENCODING": "utf-8"}
COMMAND = [sys.executable, "-m", "qla_runtime.cli"]


def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        cwd="/",
        timeout=120,
    )


def ok(*arguments: str, text: str | None = None) -> str:
    """Standard output of a run that succeeds and says nothing else."""
    done = run(*arguments, text=text)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str, text: str | None = None) -> str:
    """The one line on standard error of a run that is refused; in this process, because there are many of them."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True) for _ in range(2)]
    out, err = streams
    folder, stdin = os.getcwd(), sys.stdin
    os.chdir("/")
    sys.stdin = io.TextIOWrapper(io.BytesIO((text or "").encode()), "utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = program.main(arguments)
    finally:
        sys.stdin = stdin
        os.chdir(folder)
    printed, said = (stream.buffer.getvalue().decode() for stream in streams)
    assert (status, printed) == (2, ""), said
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith("qla: error: "), said
    return lines[0]
