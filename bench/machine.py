"""What a figure needs beside it: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import qla_runtime
from qla_runtime import Engine, _core

ROOT = Path(__file__).resolve().parents[1]

BUSY = 0.3
"""Load average from which the machine is not called idle."""


def facts() -> dict[str, Any]:
    """Plain values for a report's JSON. Nothing in it names a path of this machine."""
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "isas": _core.available_isas(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "qla_runtime": qla_runtime.__version__,
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """As the kernel reports it; virtual machines report what they like."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit() -> str:
    """The checkout's commit, with ``+`` where files differ from it; "unknown" outside a checkout."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def weight_bytes(engine: Engine) -> int:
    """Bytes of the linear layers' weights, which a call reads at least once."""
    info = engine.info
    return info["layers"] * (4 * info["hidden"] ** 2 + 2 * info["hidden"] * info["intermediate"])


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def in_words(found: dict[str, Any]) -> str:
    """One line for the head of a report."""
    line = (
        f"{found['cpu']}, {found['cpus']} CPUs, {'/'.join(found['isas'])}; qla_runtime {found['qla_runtime']} at "
        f"{found['commit']}; Python {found['python']}"
    )
    return line + (f"; not idle at the start (load {found['load']})" if found["load"] >= BUSY else "")
