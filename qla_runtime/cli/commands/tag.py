"""``qla tag``."""

from __future__ import annotations

import argparse

from qla_runtime.cli import render
from qla_runtime.cli.arguments import Commands, add_engine, add_output, new_command
from qla_runtime.cli.lengths import add_lengths, chosen_length
from qla_runtime.cli.printing import print_json, say, warn_of_cut
from qla_runtime.cli.running import open_engine, parts
from qla_runtime.cli.texts import TEXTS_HELP, read_texts
from qla_runtime.tasks.label_schemes import SCHEMES
from qla_runtime.tasks.tag import STRATEGIES


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "tag",
        run,
        "find labelled spans, such as names, in texts",
        "qla tag --model my-tagger 'Ada Lovelace lived in London.' --aggregation-strategy words",
    )
    add_engine(parser)
    add_lengths(parser)
    add_output(parser)
    parser.add_argument("texts", nargs="+", metavar="TEXT|@FILE|-", help=TEXTS_HELP)
    parser.add_argument(
        "--aggregation-strategy",
        choices=STRATEGIES,
        default="words",
        help="how labels of word pieces become spans; docs/tags.md compares them (default: %(default)s)",
    )
    parser.add_argument(
        "--label-scheme", choices=tuple(SCHEMES), help="how labels are written (default: as their names say)"
    )
    parser.add_argument(
        "--ignore-label",
        action="append",
        dest="ignore_labels",
        metavar="LABEL",
        help="a label to leave out; repeat it for several (default: O)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the spans of each text."""
    texts = read_texts(arguments.texts)
    engine = open_engine(arguments)
    length = chosen_length(arguments)
    options = {
        "aggregation_strategy": arguments.aggregation_strategy,
        "label_scheme": arguments.label_scheme,
        "ignore_labels": arguments.ignore_labels,
    }
    results = [spans for part in parts(len(texts), "tag") for spans in engine.tag(texts[part], length, **options)]
    if arguments.json:
        print_json(
            [
                {
                    "spans": list(spans),
                    "length": spans.length,
                    "length_config": spans.length_config,
                    "accuracy": spans.accuracy,
                    "macs": spans.macs,
                    "truncated": spans.truncated,
                    "budget_met": spans.budget_met,
                    **({"ran": spans.ran} if spans.ran else {}),
                }
                for spans in results
            ]
        )
        return
    warn_of_cut([spans.truncated for spans in results])
    for text, spans in zip(texts, results, strict=True):
        say(render.one_line(text))
        for span in spans:
            place = f"{span['start']}-{span['end']}"
            say(f"  {span['label']:<8} {span['score']:.4f}  {place:>9}  {render.one_line(span['text'])}")
