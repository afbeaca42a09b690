"""``qla train``. Its recipes' arguments are those of :mod:`qla_runtime.training.command`."""

from __future__ import annotations

import argparse

from qla_runtime.cli.arguments import Commands, add_output, new_command
from qla_runtime.cli.lengths import read_length
from qla_runtime.cli.printing import print_json, say
from qla_runtime.training import command as training


def add(commands: Commands) -> None:
    """Adds the command, with one subcommand per recipe."""
    parser = commands.add_parser("train", help="fine-tune a checkpoint", description="Fine-tune a checkpoint.")
    recipes = parser.add_subparsers(title="recipes", metavar="RECIPE", required=True)
    drop = new_command(
        recipes,
        "length-drop",
        run,
        "make a model that works at any length config",
        "qla train length-drop my-checkpoint train-v1.1.json my-run --minutes 60",
    )
    add_output(drop)
    example = drop.epilog
    training.add_arguments(drop)
    drop.epilog = f"{example}\n\n{drop.epilog}"


def run(arguments: argparse.Namespace) -> None:
    """Trains, and prints the report or where the checkpoint is."""
    report = training.run(arguments, read_length)
    if arguments.json:
        print_json(report)
    else:
        say(f"wrote {report['checkpoint']}")
