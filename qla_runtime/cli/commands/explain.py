"""``qla explain``."""

from __future__ import annotations

import argparse
import dataclasses

from qla_runtime.cli.arguments import Commands, add_engine, add_output, new_command
from qla_runtime.cli.printing import print_json, say
from qla_runtime.cli.running import open_engine


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "explain",
        run,
        "say which kernels run here and why, and what the package holds",
        "qla explain --model my-encoder",
    )
    add_engine(parser)
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints what the engine says of itself."""
    engine = open_engine(arguments)
    if not arguments.json:
        say(engine.explain())
        return
    lengths = {name: dataclasses.asdict(entry) for name, entry in engine.lengths.items()}
    facts = {
        "name": engine.name,
        "path": str(engine.path),
        "task": engine.task,
        "num_threads": engine.num_threads,
    }
    print_json(facts | {"lengths": lengths, "explain": engine.explain()})
