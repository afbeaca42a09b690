#!/usr/bin/env python3
"""Follows README.md word for word, as a new user does: in a fresh clone, with nothing but Python.

    tools/check_readme.py [--tests] [FOLDER]

Runs README's first command and compares what it prints with what README shows, then README's Python block in the
checkout's own folder. ``--tests`` runs README's test command as well, which takes minutes. FOLDER is a checkout
that nobody has worked in; without it, one is cloned from the checkout that this script is in.

A line of the Python block that ends with ``# -> TEXT`` says that the line prints TEXT. Times may differ from those
shown; nothing else may.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(".venv", "bin", "python")  # what README's commands make


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a fresh checkout (default: a clone of this one)")
    parser.add_argument("--tests", action="store_true", help="run the test command, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or clone(Path(scratch, "clone"))
        readme = (folder / "README.md").read_text(encoding="utf-8")
        problems = check_command(readme, folder) + check_python(readme, folder)
        if arguments.tests and not problems:
            problems = check_tests(readme, folder)
    for problem in problems:
        print(f"README.md: {problem}", file=sys.stderr)
    return 1 if problems else 0


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def blocks(readme: str, language: str = "") -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)


def commands(readme: str) -> list[str]:
    """The command lines that set up an environment: first the answer, then the tests."""
    return [line for block in blocks(readme) for line in block.splitlines() if "-m venv" in line]


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and output; errors go where this script's go. No Python setting of ours reaches the command."""
    own = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def check_command(readme: str, folder: Path) -> list[str]:
    """The first command ends with what README shows below it."""
    status, printed = run(["bash", "-c", commands(readme)[0]], folder)
    if status:
        return [f"the first command ends with exit status {status}"]
    (shown,) = [block for block in blocks(readme) if "score" in block and "-m venv" not in block][:1]
    expected, found = without_times(shown), without_times(printed)
    return [] if found.endswith(expected) else [f"the first command prints\n{found}\ninstead of\n{expected}"]


def without_times(text: str) -> str:
    return re.sub(r"[\d.,]+ ms\b", "... ms", text)


def check_python(readme: str, folder: Path) -> list[str]:
    """The Python block runs in the checkout, and prints what its comments say."""
    (code,) = blocks(readme, "python")[:1]
    status, printed = run([str(PYTHON), "-c", code], folder)
    if status:
        return [f"the Python block ends with exit status {status}"]
    lines = iter(printed.splitlines())
    for text in re.findall(r"# -> (.*)$", code, re.MULTILINE):
        if text not in lines:  # this looks on behind the line found before: the order counts
            return [f"the Python block does not print {text!r} where it says so; it prints\n{printed}"]
    return []


def check_tests(readme: str, folder: Path) -> list[str]:
    status, printed = run(["bash", "-c", commands(readme)[1]], folder)
    print(printed)
    return [f"the test command ends with exit status {status}"] if status else []


if __name__ == "__main__":
    sys.exit(main())
