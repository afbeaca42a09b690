"""The command ``qla`` as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import qla_runtime

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
    """The one line on standard error of a run that is refused."""
    done = run(*arguments, text=text)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("qla: error: "), done.stderr
    return lines[0]
