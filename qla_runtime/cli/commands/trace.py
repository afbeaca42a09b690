"""``qla trace``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from qla_runtime.cli.arguments import Commands, add_engine, add_output, new_command
from qla_runtime.cli.lengths import read_length
from qla_runtime.cli.printing import print_json, say
from qla_runtime.cli.running import open_engine
from qla_runtime.cli.texts import CONTEXT_HELP, read_text
from qla_runtime.trace import trace


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "trace",
        run,
        "show which words survive each layer",
        "qla trace 'Who wrote it?' --context @book.txt --html trace.html",
    )
    add_engine(parser)
    add_output(parser)
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--context", required=True, metavar="TEXT|@FILE|-", help=CONTEXT_HELP)
    parser.add_argument(
        "--length",
        action="append",
        metavar="NAME|VALUES",
        help="a length config, as in qla answer; repeat it to compare (default: all that the package names)",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with a slider over the layers instead")


def run(arguments: argparse.Namespace) -> None:
    """Traces the question through the layers, onto the terminal, a page, or as JSON."""
    context = read_text(arguments.context)
    lengths = [read_length(text) for text in arguments.length] if arguments.length else None
    found = trace(open_engine(arguments), arguments.question, context, lengths)
    if arguments.html is not None:
        found.write_html(arguments.html)
        say(f"wrote {arguments.html}", sys.stderr)
    if arguments.json:
        print_json(found.json())
    elif arguments.html is None:
        plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        print(found.text(styled=not plain, width=shutil.get_terminal_size().columns))
