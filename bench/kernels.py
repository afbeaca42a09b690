"""The C++ programs kernel_bench and machine_bench: built by CMake, run, read."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from bench import machine
from qla_runtime import QlaError

BUILD = machine.ROOT / "build" / "bench"


def build(folder: Path = BUILD, program: str = "kernel_bench") -> Path:
    """Configures and builds one of the programs; the second time only what has changed.

    Returns:
        The program.

    Raises:
        QlaError: CMake is missing, or failed; its last words are in the message.
    """
    configure = ["-S", str(machine.ROOT), "-B", str(folder), "-DQLA_BUILD_BENCH=ON", *_json_hint()]
    ninja = _tool("ninja")
    if ninja:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    print(f"building {program} in {folder}", file=sys.stderr)
    _cmake(program, *configure)
    _cmake(program, "--build", str(folder), "--target", program, "--parallel")
    return folder / "bench" / "cpp" / program


def run(program: Path, *, rounds: int = 9, isa: str | None = None) -> list[dict[str, Any]]:
    """Measures every kernel on one core.

    Args:
        program: from :func:`build`.
        rounds: interleaved.
        isa: the highest instruction set to measure; None: all that this CPU has.

    Returns:
        What kernel_bench prints: operation, case, isa, kernel, macs and bytes of a call, and ``ns``, the
        nanoseconds of a call in each round.
    """
    return _lines(program, isa, "--rounds", str(rounds))


def cases(program: Path) -> list[dict[str, Any]]:
    """The same without measuring: ``ns`` is empty."""
    return _lines(program, None, "--list")


def record(folder: Path = BUILD, *, rounds: int = 9, isa: str | None = None) -> dict[str, Any]:
    """What ``bench.report.kernels_text`` reads."""
    facts = machine.facts()
    measured = run(build(folder), rounds=rounds, isa=isa)
    return {"machine": facts, "machine_in_words": machine.in_words(facts), "kernels": measured}


def limits(threads: int, isa: str | None = None, folder: Path = BUILD) -> dict[str, Any]:
    """What this machine gives so many threads at once.

    Args:
        threads: as many as the calls have that are to be compared with it.
        isa: the highest instruction set; None: the best of this CPU.
        folder: where machine_bench is built.

    Returns:
        ``isa``, ``threads``, ``macs_per_second`` (dot products on registers) and ``bytes_per_second`` (read from
        memory).

    Raises:
        QlaError: it could not be built or run.
    """
    return _lines(build(folder, "machine_bench"), isa, str(threads))[0]


def _lines(program: Path, isa: str | None, *arguments: str) -> list[dict[str, Any]]:
    environ = os.environ | ({"QLA_MAX_ISA": isa} if isa else {})
    done = subprocess.run([program, *arguments], env=environ, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise QlaError(f"{program.name} ended with status {done.returncode}; what it said is above")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _cmake(program: str, *arguments: str) -> None:
    cmake = _tool("cmake")
    if not cmake:
        raise QlaError(f"building {program} needs CMake; run: pip install cmake ninja nlohmann-json")
    done = subprocess.run([cmake, *arguments], capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise QlaError("\n".join([f"building {program} failed", *words[-15:]]))


def _tool(name: str) -> str | None:
    """A program of this Python environment, else of the system."""
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


def _json_hint() -> list[str]:
    """Where PyPI's nlohmann-json put its headers; without it they have to be a system package's."""
    try:
        files = importlib.metadata.files("nlohmann-json") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    headers = [Path(file.locate()).resolve() for file in files if file.match("nlohmann/json.hpp")]
    return [f"-DNLOHMANN_JSON_HINT={header.parents[1]}" for header in headers]
