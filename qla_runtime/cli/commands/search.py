"""``qla search``. Its arguments are those of :mod:`qla_runtime.search.command`."""

from __future__ import annotations

import argparse

from qla_runtime.cli.arguments import Commands, add_output, new_command
from qla_runtime.cli.printing import print_json, say
from qla_runtime.search import command as searching


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "search",
        run,
        "find the length configs worth having, by evolution",
        "qla search my-package dev-v1.1.json",
    )
    add_output(parser)
    example = parser.epilog
    searching.add_arguments(parser)
    parser.epilog = f"{example}\n\n{parser.epilog}"


def run(arguments: argparse.Namespace) -> None:
    """Searches, and prints the report or a table of it."""
    report = searching.run(arguments)
    if arguments.json:
        print_json(report)
    else:
        say(searching.text(report))
