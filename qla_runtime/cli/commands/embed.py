"""``qla embed``."""

from __future__ import annotations

import argparse

from qla_runtime.bulk import require_packages
from qla_runtime.bulk.options import EmbedOptions, FileOptions
from qla_runtime.cli.arguments import Commands, add_engine, add_output, add_prompts, new_command
from qla_runtime.cli.lengths import add_lengths
from qla_runtime.cli.whole_files import BULK_LATENCY, INPUT_HELP, write_file
from qla_runtime.hub import PACKAGED
from qla_runtime.settings import add_arguments


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "embed",
        run,
        "write the embeddings of a file's texts beside its rows; the same command resumes after a kill",
        "qla embed pages.parquet vectors.parquet --columns id --vectors float16",
    )
    parser.add_argument("source", metavar="IN", help=INPUT_HELP)
    parser.add_argument("out", metavar="OUT.parquet", help="the Parquet file to write")
    add_engine(parser, PACKAGED["embedding"])
    add_lengths(parser, BULK_LATENCY)
    add_output(parser)
    add_arguments(parser.add_argument_group("rows and columns"), FileOptions)
    vectors = parser.add_argument_group("vectors")
    add_arguments(vectors, EmbedOptions, "into", "vectors", "truncate_dim", "normalize_embeddings")
    add_prompts(parser, "every text")


def run(arguments: argparse.Namespace) -> None:
    """Writes the output, and says what was done."""
    require_packages()
    from qla_runtime.bulk.job import embed_file

    write_file(arguments, embed_file, EmbedOptions)
