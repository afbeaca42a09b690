"""``qla train``. Its recipes' arguments are those of :mod:`qla_runtime.training.command`."""

from __future__ import annotations

import argparse

from qla_runtime.cli.arguments import Commands, add_output, new_command
from qla_runtime.cli.lengths import read_length
from qla_runtime.cli.printing import print_json, say
from qla_runtime.training import command as training
from qla_runtime.training.recipes import RECIPES


def add(commands: Commands) -> None:
    """Adds the command, with one subcommand per recipe."""
    parser = commands.add_parser("train", help="fine-tune a checkpoint", description="Fine-tune a checkpoint.")
    recipes = parser.add_subparsers(title="recipes", metavar="RECIPE", required=True)
    for name, recipe in RECIPES.items():
        command = new_command(recipes, name, run, recipe.summary, recipe.example)
        add_output(command)
        example = command.epilog
        training.add_arguments(command, recipe)
        command.epilog = f"{example}\n\n{command.epilog}"


def run(arguments: argparse.Namespace) -> None:
    """Trains, and prints the report or where the checkpoint is."""
    report = training.run(arguments, read_length)
    if arguments.json:
        print_json(report)
    else:
        say(f"wrote {report['checkpoint']}")
