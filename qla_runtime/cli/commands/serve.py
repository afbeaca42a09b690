"""``qla serve``."""

from __future__ import annotations

import argparse
import os
import sys

from qla_runtime import UnsupportedError
from qla_runtime.cli.arguments import Commands, new_command
from qla_runtime.cli.printing import say
from qla_runtime.serve.options import ServeOptions
from qla_runtime.settings import add_arguments, from_arguments

KEY = "QLA_API_KEY"


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "serve",
        run,
        "answer requests over HTTP, as text-embeddings-inference, OpenAI and Cohere do",
        "qla serve all-minilm-l6-v2 squad=minilm-l6-squad --port 8080",
    )
    parser.add_argument(
        "packages",
        nargs="*",
        metavar="[NAME=]PACKAGE",
        help="package folder, packaged model or hub id, and the name that clients call it "
        "(default: minilm-l6-squad)",
    )
    add_arguments(parser, ServeOptions)


def run(arguments: argparse.Namespace) -> None:
    """Serves until a signal ends it."""
    arguments.api_key = arguments.api_key or os.environ.get(KEY) or None
    options = from_arguments(ServeOptions, arguments)
    try:
        from qla_runtime.serve.lifecycle import packages_of, serve
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"qla serve needs {error.name}, which is not installed; pip install 'qla_runtime[serve]'"
        ) from None
    packages = packages_of(arguments.packages) or {"": None}
    serve(packages, options, lambda address: say(f"serving {address}", sys.stderr))
