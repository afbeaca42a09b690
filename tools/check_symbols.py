#!/usr/bin/env python3
"""Finds library templates in the object files of an instruction set.

    tools/check_symbols.py BUILD

The linker keeps one copy of a template or an inline function that several files define. Where that copy comes from
a file compiled for AVX-512, the whole library needs AVX-512. So files of an instruction set define nothing that
other files may define, too: no weak and no unique symbol, and nothing of the standard library, not even a local
copy: whether a compiler makes it local is chance. BUILD is a CMake build folder of this project.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BASELINE = ("qla_engine", "qla_ref")  # compiled for the weakest CPU: any copy of theirs will do
SHARED = "VWuvw"  # nm's letters
LIBRARY = re.compile(r"([^(]* )?(std|__gnu_cxx)::")  # perhaps after the type that it returns


def main() -> int:
    (build,) = sys.argv[1:]
    objects = isa_objects(Path(build))
    problems = [f"{path}: {symbol}" for path in objects for symbol in shared_symbols(path)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(objects)} object files, {len(problems)} symbols that other files may define, too")
    return 1 if problems else 0


def isa_objects(build: Path) -> list[Path]:
    """The object files of the kernel libraries beyond the baseline."""
    folders = sorted((build / "CMakeFiles").glob("qla_*.dir/kernels"))
    found = [
        path for folder in folders if folder.parent.stem not in BASELINE for path in sorted(folder.glob("*.o"))
    ]
    if not found:
        sys.exit(f"{build}: no object files of kernels; configure and build it first")
    return found


def shared_symbols(path: Path) -> list[str]:
    command = ["nm", "--demangle", "--defined-only", path]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    symbols = (line.split(maxsplit=2) for line in lines)  # value, type, name
    return [name for _, kind, name in symbols if kind in SHARED or LIBRARY.match(name)]


if __name__ == "__main__":
    sys.exit(main())
