"""``qla eval``: accuracy on a test set, one subcommand per kind of score."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from qla_runtime import Engine
from qla_runtime.cli.arguments import (
    Commands,
    add_engine,
    add_output,
    add_skip_bad_rows,
    new_command,
    positive,
)
from qla_runtime.cli.commands.answer import add_answer_options, answer_options
from qla_runtime.cli.lengths import add_lengths, chosen_length, length_in_words
from qla_runtime.cli.printing import print_json, say
from qla_runtime.cli.running import open_engine
from qla_runtime.evaluation.classification import classification, read_examples
from qla_runtime.evaluation.questions import ARTICLES, read_squad
from qla_runtime.evaluation.ranking import ranking, read_queries
from qla_runtime.evaluation.squad import answers
from qla_runtime.evaluation.sts import similarities
from qla_runtime.evaluation.tagging import read_conll, tagging
from qla_runtime.progress import bar
from qla_runtime.texts.data_sets import read_scored_pairs
from qla_runtime.texts.files import shown


def add(commands: Commands) -> None:
    """Adds the command, with one subcommand per kind of test set."""
    parser = commands.add_parser("eval", help="measure accuracy on a test set", description="Measure accuracy.")
    sets = parser.add_subparsers(title="test sets", metavar="SET", required=True)

    squad = new_command(
        sets,
        "squad",
        _squad,
        "exact match and F1 on a SQuAD file, 1.1 or 2.0",
        "qla eval squad dev-v1.1.json --length balanced",
    )
    _add_run(squad)
    squad.add_argument("file", metavar="FILE", help="the JSON file")
    squad.add_argument("--articles", choices=ARTICLES, default="all", help="by position; the first is odd")
    squad.add_argument("--limit", type=positive, metavar="N", help="only the first N questions")
    add_answer_options(squad)

    similarity = new_command(
        sets,
        "sts",
        _sts,
        "Spearman correlation on an STS benchmark file",
        "qla eval sts sts-test.csv --model my-encoder",
    )
    _add_run(similarity)
    similarity.add_argument(
        "file", metavar="FILE", help="an STS benchmark .csv, or a table that names its columns"
    )
    add_skip_bad_rows(similarity)

    table = "a table with named columns of texts and labels (.tsv, .csv or .jsonl)"
    _add_labelled(
        sets,
        "classify",
        "accuracy, F1 and Matthews correlation on labelled texts",
        "qla eval classify dev.tsv --model my-classifier",
        file=table,
        read=read_examples,
        measure=classification,
    )
    _add_labelled(
        sets,
        "rank",
        "MRR@10 and nDCG@10 on labelled pairs, or correlations with scores",
        "qla eval rank pairs.tsv --model my-reranker",
        file=table,
        read=read_queries,
        measure=ranking,
    )
    _add_labelled(
        sets,
        "tag",
        "precision, recall and F1 of entities on a CoNLL file",
        "qla eval tag test.conll --model my-tagger",
        file="the CoNLL file",
        read=read_conll,
        measure=tagging,
    )


def _add_labelled(
    sets: Commands,
    name: str,
    text: str,
    example: str,
    *,
    file: str,
    read: Callable[..., Sequence[Any]],
    measure: Callable[..., Any],
) -> None:
    """Adds a test set: ``read`` reads its file, ``measure`` scores it, and ``str`` of the score is the report."""
    parser = new_command(sets, name, _labelled, text, example)
    _add_run(parser)
    parser.add_argument("file", metavar="FILE", help=file)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N texts, queries or sentences")
    add_skip_bad_rows(parser)
    parser.set_defaults(read=read, measure=measure, what=name)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add_engine(parser)
    add_lengths(parser)
    add_output(parser)


def _squad(arguments: argparse.Namespace) -> None:
    questions = read_squad(arguments.file, arguments.articles)[: arguments.limit]
    engine = open_engine(arguments)
    with bar(len(questions), "squad") as progress:
        score = answers(
            engine, questions, chosen_length(arguments), progress=progress, options=answer_options(arguments)
        )
    if arguments.json:
        facts = dataclasses.asdict(score)
        official = facts.pop("squad2") or {}
        print_json(facts | official | {"articles": arguments.articles} | _run_facts(engine, arguments))
        return
    print(f"exact match {score.exact_match:.2f}   F1 {score.f1:.2f}")
    which = f"{score.questions} questions ({arguments.articles} articles)"
    print(f"{which}, {score.macs / 1e9:.3f} G MACs each on average")
    if score.within_budget is not None:
        print(f"{score.within_budget:.1%} within {arguments.latency_ms:g} ms")
    print(f"{score.seconds:.1f} s, {score.questions / score.seconds:.1f} questions/s")
    for name, value in (score.squad2 or {}).items():
        print(f"  {name:<18} {value:g}" if name.endswith("total") else f"  {name:<18} {value:.4f}")


def _sts(arguments: argparse.Namespace) -> None:
    pairs = read_scored_pairs(arguments.file, skip_bad_rows=arguments.skip_bad_rows)
    engine = open_engine(arguments)
    with bar(len(pairs[0]), "sts") as progress:
        score = similarities(engine, pairs, shown(arguments.file), chosen_length(arguments), progress=progress)
    if arguments.json:
        print_json(dataclasses.asdict(score) | _run_facts(engine, arguments))
        return
    print(f"Spearman {score.spearman:.2f} over {score.pairs} pairs, {score.seconds:.1f} s")


def _labelled(arguments: argparse.Namespace) -> None:
    examples = arguments.read(arguments.file, skip_bad_rows=arguments.skip_bad_rows)[: arguments.limit]
    engine = open_engine(arguments)
    with bar(len(examples), arguments.what) as progress:
        score = arguments.measure(engine, examples, chosen_length(arguments), progress)
    if arguments.json:
        print_json(dataclasses.asdict(score) | _run_facts(engine, arguments))
    else:
        say(str(score))


def _run_facts(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, for reports in JSON."""
    return {"model": engine.name, "length": length_in_words(arguments)}
