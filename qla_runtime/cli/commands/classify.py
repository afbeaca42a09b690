"""``qla classify``."""

from __future__ import annotations

import argparse

from qla_runtime import InputError
from qla_runtime.bulk import require_packages
from qla_runtime.bulk.options import ClassifyOptions, FileOptions
from qla_runtime.cli import render
from qla_runtime.cli.arguments import Commands, add_engine, add_output, new_command, positive_or_all
from qla_runtime.cli.lengths import add_lengths, chosen_length
from qla_runtime.cli.printing import print_json, say, warn_of_cut
from qla_runtime.cli.running import open_engine, parts
from qla_runtime.cli.texts import TEXTS_HELP, read_texts
from qla_runtime.cli.whole_files import BULK_LATENCY, INPUT_HELP, write_file
from qla_runtime.settings import add_arguments


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "classify",
        run,
        "label texts, or pairs of texts",
        "qla classify --model my-classifier 'a fine film' --top-k all",
    )
    add_engine(parser)
    add_lengths(parser)
    add_output(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT|@FILE|-", help=TEXTS_HELP)
    parser.add_argument(
        "--pair",
        action="append",
        metavar="TEXT|@FILE",
        help="the second text of each pair; repeat it, once per text",
    )
    parser.add_argument(
        "--top-k", type=positive_or_all, default=1, metavar="N|all", help="labels to show (default: 1)"
    )
    whole = parser.add_argument_group(
        "whole files", f"The same command resumes after a kill. --latency-ms is {BULK_LATENCY}."
    )
    whole.add_argument("--in", dest="source", metavar="FILE", help=f"{INPUT_HELP}, in place of TEXT")
    whole.add_argument("--out", metavar="FILE.parquet", help="write the rows of --in with their labels")
    add_arguments(whole, FileOptions)
    add_arguments(whole, ClassifyOptions, "pair_column")


def run(arguments: argparse.Namespace) -> None:
    """Prints the labels of each text or pair, or writes those of a file."""
    if (arguments.source is None) != (arguments.out is None):
        raise InputError("--in and --out go together; give both, or texts")
    if arguments.source is not None:
        if arguments.texts or arguments.pair:
            raise InputError("--in is given and texts, too; give one of them")
        require_packages()
        from qla_runtime.bulk.job import classify_file

        write_file(arguments, classify_file, ClassifyOptions)
        return
    if not arguments.texts:
        raise InputError("there are no texts; give at least one, or a file with --in and --out")
    texts = read_texts(arguments.texts)
    pairs = read_texts(arguments.pair) if arguments.pair else None
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(
            f"there are {len(texts)} texts and {len(pairs)} texts in --pair; give one --pair per text"
        )
    engine = open_engine(arguments)
    length = chosen_length(arguments)
    results = [
        result
        for part in parts(len(texts), "classify")
        for result in engine.classify(texts[part], pairs and pairs[part], length, top_k=arguments.top_k)
    ]
    if arguments.json:
        print_json(results)
        return
    warn_of_cut([result["truncated"] for result in results])
    for text, result in zip(texts, results, strict=True):
        scores = result.get("scores", [result])
        say(f"{render.one_line(text)}\t" + "  ".join(f"{s['label']} {s['score']:.4f}" for s in scores))
