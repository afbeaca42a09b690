"""``qla convert``."""

from __future__ import annotations

import argparse

from qla_runtime.cli.arguments import Commands, add_output, add_skip_bad_rows, new_command, positive
from qla_runtime.cli.printing import print_json, say


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "convert",
        run,
        "turn a Hugging Face checkpoint into an INT8 package",
        "qla convert owner/checkpoint my-package --calibrate texts.txt",
    )
    add_output(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or hub id")
    parser.add_argument("out", metavar="OUT", help="folder of the package; an older package there is replaced")
    parser.add_argument(
        "--calibrate",
        metavar="TEXTS",
        help="file of typical texts (.txt, .tsv, .csv, .jsonl or SQuAD .json) for the accuracy report and for "
        "static scales (default: the report runs on a few built-in sentences)",
    )
    parser.add_argument(
        "--activations",
        choices=("per_token", "static"),
        default="per_token",
        help="scales of the linear layers' inputs; static ones need --calibrate (default: %(default)s)",
    )
    parser.add_argument(
        "--scales",
        choices=("neural-compressor", "max-abs"),
        help="where the scales come from; max-abs needs numpy alone, and gives the same weights with per_token "
        "activations (default: neural-compressor where it is installed)",
    )
    parser.add_argument("--task", help="what the model is for, where the checkpoint does not say")
    parser.add_argument("--max-length", type=positive, metavar="N", help="tokens that a text is cut at")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        help="how a sentence encoder without modules.json makes one vector (default there: mean)",
    )
    parser.add_argument(
        "--activation",
        metavar="NAME",
        help="what makes a reranker's score of its logit, such as sigmoid or identity (default: the checkpoint's)",
    )
    parser.add_argument("--name", help="the package's name (default: the output folder's)")
    parser.add_argument(
        "--algorithm",
        choices=("kl", "minmax"),
        default="kl",
        help="how static ranges are chosen (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=positive, default=96, metavar="N", help="texts for static scales (default: 96)"
    )
    parser.add_argument(
        "--compare", action="store_true", help="report both kinds of --activations; calibrates the static one"
    )
    add_skip_bad_rows(parser, "rows of TEXTS")
    parser.add_argument(
        "--articles", choices=("all", "odd"), default="all", help="articles of a SQuAD file to take"
    )

    no_answer = parser.add_mutually_exclusive_group()
    no_answer.add_argument(
        "--no-answer",
        action="store_const",
        const=True,
        help="question answering: the model was trained on questions without an answer (SQuAD 2.0), and may "
        "say so (default: where the checkpoint's name or card says squad2)",
    )
    no_answer.add_argument(
        "--always-answer",
        dest="no_answer",
        action="store_const",
        const=False,
        help="question answering: the model always gives an answer, whatever its name or card says",
    )


def run(arguments: argparse.Namespace) -> None:
    """Converts the checkpoint, and prints the report or where the package is."""
    from qla_runtime.convert import convert

    report = convert(
        arguments.checkpoint,
        arguments.out,
        arguments.calibrate,
        activations=arguments.activations,
        scales=arguments.scales,
        task=arguments.task,
        max_length=arguments.max_length,
        pooling=arguments.pooling,
        activation=arguments.activation,
        name=arguments.name,
        calibration_algo=arguments.algorithm,
        calibration_samples=arguments.samples,
        articles=arguments.articles,
        compare_activations=arguments.compare,
        skip_bad_rows=arguments.skip_bad_rows,
        no_answer=arguments.no_answer,
    )
    if arguments.json:
        print_json(report)
    else:
        say(f"wrote {arguments.out}")
