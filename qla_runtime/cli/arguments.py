"""What the arguments of several commands share: how a command is made, types of numbers, and options.

It imports no command, so that everything with a command line of its own may use it, ``bench`` too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from qla_runtime.hub import DEFAULT_PACKAGE, PACKAGED

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What ``add_subparsers`` gives: the place that commands are added to."""


def positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1; give a whole number of at least 1")
    return number


def positive_or_all(text: str) -> int | None:
    """For argparse: a whole number of at least 1, or ``all``, which is None."""
    return None if text == "all" else positive(text)


positive.__name__ = positive_or_all.__name__ = "number"  # argparse: "invalid number value: 'x'"


def new_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: where it is added.
        name: what calls it.
        run: does its work.
        text: one line for the list of commands, without a full stop. The command's own help begins with it.
        example: a command line for the end of its help.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def add_engine(parser: argparse.ArgumentParser, model: str | None = None) -> None:
    """``--model``, ``--threads`` and ``--isa``.

    Args:
        parser: of the command.
        model: the packaged model that is opened where none is named; None: the default one.
    """
    parser.add_argument(
        "--model",
        default=model,
        help=f"package folder, {', '.join(PACKAGED.values())}, or hub id (default: {model or DEFAULT_PACKAGE})",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads per call (default: what this process may use)"
    )
    parser.add_argument(
        "--isa",
        choices=("ref", "avx2", "avxvnni", "avx512vnni", "amx"),
        help="force an instruction set (default: the best that this CPU has)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")


def add_prompts(parser: argparse.ArgumentParser, where: str) -> None:
    """``--prompt-name`` and ``--prompt``: the text that the model wants before its input.

    Args:
        parser: of the command.
        where: which texts get it, such as ``the query``.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--prompt-name",
        metavar="NAME",
        help=f"put the model's prompt of this name before {where} (default: the model's own choice)",
    )
    group.add_argument("--prompt", metavar="TEXT", help=f"put this text before {where}; an empty one for none")


def add_skip_bad_rows(parser: argparse.ArgumentParser, rows: str = "rows") -> None:
    """``--skip-bad-rows``, where a table is read."""
    parser.add_argument(
        "--skip-bad-rows", action="store_true", help=f"leave out {rows} that cannot be read, and count them"
    )
