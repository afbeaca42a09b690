"""``qla train RECIPE``: arguments, and nothing that a library caller would miss. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qla_runtime import settings
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.task_kinds import TASK_KINDS
from qla_runtime.training.options import LoopOptions
from qla_runtime.training.recipe import BringsData, RecipeOptions

EPILOG = """\
The same command continues a run that was interrupted (Ctrl-C and SIGTERM write a checkpoint first), and ends
at the same bits as an uninterrupted one. On CPUs, an allocator that never gives memory back saves much time:
  export LD_PRELOAD=libjemalloc.so.2
  export MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,narenas:2,oversize_threshold:0
Batches of many shapes, such as sentences make, want 10000 in place of -1, or memory runs out.
"""


def add_arguments(parser: argparse.ArgumentParser, recipe: type[RecipeOptions]) -> None:
    """The arguments of ``qla train`` and a recipe."""
    parser.set_defaults(recipe=recipe)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    brings_data = issubclass(recipe, BringsData)
    if brings_data:
        parser.add_argument("checkpoint", metavar="TEACHER", help="any checkpoint that the runtime can run")
        parser.add_argument(
            "data", metavar="TEXT", nargs="+",
            help="plain text, .txt, .txt.xz or .txt.gz, with empty lines between documents; one file or several",
        )  # fmt: skip
    else:
        parser.add_argument("checkpoint", metavar="CHECKPOINT", help="fine-tuned checkpoint or pretrained encoder")
        parser.add_argument(
            "data",
            metavar="DATA",
            help="SQuAD .json; GLUE-like .tsv, .csv or .jsonl; CoNLL, a word and its tag per line (token "
            "classification); or .txt with a sentence per line (embeddings)",
        )
    parser.add_argument("out", metavar="OUT", help="folder of the run; OUT/final will hold the trained checkpoint")

    until = parser.add_mutually_exclusive_group(required=True)
    settings.add_arguments(until, LoopOptions, "steps", "epochs", "minutes")

    model = parser.add_argument_group("model")
    if brings_data:
        parser.set_defaults(task=None, new_head=False, skip_bad_rows=False, teacher=None, live_teacher=False)
        model.add_argument("--max-length", type=int, metavar="N", help="tokens of a sequence")
    else:
        model.add_argument(
            "--task",
            choices=TASK_KINDS,
            help="where the checkpoint does not say",
        )
        model.add_argument("--max-length", type=int, metavar="N", help="tokens of a sequence (span-qa: 384)")
        model.add_argument("--new-head", action="store_true", help="replace a head made for another task")
        model.add_argument(
            "--skip-bad-rows",
            action="store_true",
            help="leave out rows of the data that cannot be read, and count them",
        )
    settings.add_arguments(model, LoopOptions, "train_word_embeddings")

    recipe.add_arguments(parser.add_argument_group(recipe.title))

    train = parser.add_argument_group("training")
    settings.add_arguments(train, recipe, "batch_tokens")
    settings.add_arguments(
        train, LoopOptions, "accumulation", "learning_rate", "warmup", "weight_decay", "clip", "seed"
    )
    train.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    settings.add_arguments(train, LoopOptions, "checkpoint_minutes")

    watch = parser.add_argument_group("watching")
    settings.add_arguments(watch, LoopOptions, "log_steps")
    watch.add_argument(
        "--eval", dest="assess_file", metavar="FILE",
        help="measure accuracy before and after: SQuAD .json (odd articles), GLUE-like .tsv, CoNLL, STS .csv",
    )  # fmt: skip
    watch.add_argument(
        "--eval-length", dest="assess_lengths", action="append", default=[], metavar="VALUES",
        help="also with this length config, such as 1.0,.73,.71,.46,.29,.12; repeatable",
    )  # fmt: skip
    settings.add_arguments(watch, LoopOptions, "assess_steps")
    watch.add_argument("--eval-sample", type=int, default=1000, metavar="N", help="items measured (default: 1000)")
    watch.add_argument("--plot", metavar="PNG", help="draw the log when done (needs matplotlib)")


def run(arguments: argparse.Namespace, read_length: Callable[[str], str | LengthConfig]) -> dict[str, Any]:
    """Trains as the arguments say; returns the report of :func:`qla_runtime.training.run.train`.

    Args:
        arguments: of :func:`add_arguments`.
        read_length: reads a length config as ``--length`` of the other commands does; names come back as they
            are, and no checkpoint has names.
    """
    from qla_runtime.training import require_packages

    require_packages()
    from qla_runtime.training.run import train

    report = train(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        options=settings.from_arguments(arguments.recipe, arguments),
        loop=settings.from_arguments(LoopOptions, arguments),
        task=arguments.task,
        max_length=arguments.max_length,
        new_head=arguments.new_head,
        skip_bad_rows=arguments.skip_bad_rows,
        teacher=getattr(arguments, "teacher", None),  # options of recipes that learn from one
        live_teacher=getattr(arguments, "live_teacher", False),
        precision=arguments.precision,
        assess_file=arguments.assess_file,
        assess_lengths={text: _config(text, read_length) for text in arguments.assess_lengths},
        assess_sample=arguments.eval_sample,
    )
    if arguments.plot:
        from qla_runtime.training.plot import plot

        plot(Path(arguments.out), arguments.plot)
    return report


def _config(text: str, read_length: Callable[[str], str | LengthConfig]) -> LengthConfig:
    config = read_length(text)
    if isinstance(config, str):
        raise InputError(f"--eval-length {text!r} is no length config; give one value per layer")
    return config
