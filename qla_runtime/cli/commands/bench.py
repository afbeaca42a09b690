"""``qla bench``. The benchmarks are in ``bench/`` of a source checkout, and no installed package has them."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from qla_runtime import UnsupportedError
from qla_runtime.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Adds the command: with its arguments in a source checkout, and elsewhere as a hint."""
    text = "measure speed, beside other runtimes too (needs a source checkout)"
    root = Path(__file__).resolve().parents[3]
    if (root / "bench" / "command.py").is_file():
        sys.path.insert(0, str(root))
        try:
            # By name, because bench stands on this package and not the other way round.
            benchmarks = import_module("bench.command")
        finally:
            sys.path.remove(str(root))
        parser = commands.add_parser("bench", help=text, description="Measure speed.")
        parser.set_defaults(command=benchmarks.run)
        benchmarks.add_arguments(parser)
        return
    # Without its options every argument is just a word, so that all calls get the one helpful sentence.
    parser = commands.add_parser("bench", help=text, prefix_chars="\0", add_help=False)
    parser.add_argument("words", nargs="*")
    parser.set_defaults(command=_refuse)


def _refuse(_: argparse.Namespace) -> NoReturn:
    raise UnsupportedError(
        "qla bench runs from a source checkout only: clone the repository, pip install -e '.[bench]' there, and "
        "call its qla"
    )
