"""``qla rank``."""

from __future__ import annotations

import argparse

from qla_runtime.cli import render
from qla_runtime.cli.arguments import (
    Commands,
    add_engine,
    add_output,
    add_prompts,
    new_command,
    positive_or_all,
)
from qla_runtime.cli.lengths import add_lengths, chosen_length
from qla_runtime.cli.printing import print_json, say, warn_of_cut
from qla_runtime.cli.running import open_engine, parts
from qla_runtime.cli.texts import TEXTS_HELP, read_texts


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "rank",
        run,
        "order documents by how well they answer a query",
        "qla rank --model my-reranker 'how do bees dance?' @passages.txt --top-k 5",
    )
    add_engine(parser)
    add_lengths(parser)
    add_output(parser)
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("documents", nargs="+", metavar="DOCUMENT|@FILE|-", help=TEXTS_HELP)
    parser.add_argument(
        "--top-k", type=positive_or_all, default=None, metavar="N|all", help="documents to show (default: all)"
    )
    parser.add_argument("--raw-scores", action="store_true", help="show logits, without the model's activation")
    add_prompts(parser, "the query")


def run(arguments: argparse.Namespace) -> None:
    """Prints the documents, best first."""
    documents = read_texts(arguments.documents)
    engine = open_engine(arguments)
    length = chosen_length(arguments)
    options = {
        "raw_scores": arguments.raw_scores,
        "prompt_name": arguments.prompt_name,
        "prompt": arguments.prompt,
    }
    results = [
        result | {"index": part.start + result["index"]}
        for part in parts(len(documents), "rank")
        for result in engine.rank(arguments.query, documents[part], length, **options)
    ]
    if not arguments.json:
        warn_of_cut([result["truncated"] for result in results])
    results = sorted(results, key=lambda result: (-result["score"], result["index"]))[: arguments.top_k]
    if arguments.json:
        print_json(results)
        return
    for result in results:
        say(f"{result['score']:9.4f}  {result['index']:>4}  {render.one_line(documents[result['index']])}")
