"""``qla answer``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from qla_runtime.cli import render
from qla_runtime.cli.arguments import Commands, add_engine, add_output, new_command, positive
from qla_runtime.cli.lengths import add_lengths, chosen_length
from qla_runtime.cli.printing import print_json, say
from qla_runtime.cli.running import open_engine, timed
from qla_runtime.cli.texts import CONTEXT_HELP, read_text
from qla_runtime.tasks.answer import SCORES


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "answer",
        run,
        "find the answer to a question in a text",
        "qla answer 'Who wrote it?' --context @book.txt --length balanced",
    )
    add_engine(parser)
    add_lengths(parser)
    add_output(parser)
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--context", required=True, metavar="TEXT|@FILE|-", help=CONTEXT_HELP)
    parser.add_argument("--top-k", type=positive, default=1, metavar="N", help="answers to show (default: 1)")
    add_answer_options(parser)
    parser.add_argument("--show-kept", action="store_true", help="draw the tokens that each layer keeps")


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """The options of question answering, but for the number of answers."""
    parser.add_argument(
        "--max-answer-tokens",
        type=positive,
        metavar="N",
        help="tokens of an answer (default: the package's limit)",
    )
    parser.add_argument(
        "--doc-stride",
        type=int,
        metavar="N",
        help="tokens that neighbouring windows of a long text share (default: the package's)",
    )
    parser.add_argument(
        "--handle-impossible-answer",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let 'no answer' win where it is likelier than every span (default: as the package says)",
    )
    parser.add_argument(
        "--null-threshold",
        type=float,
        metavar="P",
        help="say 'no answer' where the null score is above P (default: above the best span's score)",
    )
    parser.add_argument(
        "--score", choices=SCORES, help="what a score means; docs/question-answering.md has the rules"
    )


def answer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`add_answer_options`, and ``--top-k``, as ``Engine.answer`` takes them."""
    names = ("top_k", "max_answer_tokens", "doc_stride", "handle_impossible_answer", "null_threshold", "score")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def run(arguments: argparse.Namespace) -> None:
    """Answers the question, and prints the answer and what it cost."""
    context = read_text(arguments.context)
    opened, engine = timed(lambda: open_engine(arguments))
    ready = "open and warm up" if arguments.latency_ms is not None else "open"
    seconds, result = timed(
        lambda: engine.answer(
            arguments.question, context, chosen_length(arguments), details=True, **answer_options(arguments)
        )
    )
    if arguments.json:
        counts = [len(positions) for positions in result.pop("kept")]
        tokens = len(result.pop("tokens"))
        print_json(result | {"kept": counts, "tokens": tokens, "seconds": seconds, "open_seconds": opened})
        return
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    say(
        render.answer(
            result,
            time=f"{1e3 * seconds:.1f} ms for the call, {1e3 * opened:.1f} ms to {ready} the model",
            show_kept=arguments.show_kept,
            block=block,
        )
    )
