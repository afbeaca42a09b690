"""``qla train``: arguments, and nothing that a library caller would miss. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig

EPILOG = """\
The same command continues a run that was interrupted (Ctrl-C and SIGTERM write a checkpoint first), and ends
at the same bits as an uninterrupted one. On CPUs, an allocator that never gives memory back saves much time:
  export LD_PRELOAD=libjemalloc.so.2
  export MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,narenas:2,oversize_threshold:0
Batches of many shapes, such as sentences make, want 10000 in place of -1, or memory runs out.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``qla train length-drop``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="fine-tuned checkpoint or pretrained encoder")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="SQuAD .json; GLUE-like .tsv, .csv or .jsonl; or .txt with a sentence per line (embeddings)",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the run; OUT/final will hold the trained checkpoint")

    until = parser.add_mutually_exclusive_group(required=True)
    until.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    until.add_argument("--epochs", type=float, metavar="X", help="passes over the data, such as 1.5")
    until.add_argument(
        "--minutes",
        type=float,
        metavar="X",
        help="as many steps as fit; some batches are timed first to tell",
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--task",
        choices=("span-qa", "sequence-classification", "embedding"),
        help="where the checkpoint does not say",
    )
    model.add_argument("--max-length", type=int, metavar="N", help="tokens of a sequence (span-qa: 384)")
    model.add_argument("--new-head", action="store_true", help="replace a head made for another task")
    model.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave out rows of the data that cannot be read, and count them",
    )
    model.add_argument("--train-word-embeddings", action="store_true", help="train them too; slower")

    drop = parser.add_argument_group("LengthDrop")
    shape = drop.add_mutually_exclusive_group()
    shape.add_argument(
        "--length-drop-ratio-bound", dest="ratio_bound", type=float, default=0.2, metavar="P",
        help="largest share of its tokens that a layer drops (default: %(default)s)",
    )  # fmt: skip
    shape.add_argument(
        "--smallest", metavar="VALUES",
        help="the smallest sub-model in place of a constant rate, such as .97,.8,.6,.4,.2,.1",
    )  # fmt: skip
    drop.add_argument(
        "--random-passes", type=int, default=1, metavar="N", help="sub-models per batch (default: 1)"
    )
    drop.add_argument(
        "--layer-drop", type=float, default=0.0, metavar="P", help="share of layers that sub-models leave out"
    )
    drop.add_argument(
        "--teacher", metavar="CHECKPOINT", help="distil from this fixed model instead of from the full pass"
    )
    drop.add_argument(
        "--live-teacher", action="store_true",
        help="run it batch by batch instead of over all data beforehand: for an epoch or less",
    )  # fmt: skip
    drop.add_argument("--task-weight", type=float, default=1.0, metavar="X", help="of the labels (default: 1)")
    drop.add_argument("--distill-weight", type=float, default=1.0, metavar="X", help="of the teacher (default: 1)")
    drop.add_argument(
        "--hidden-weight", type=float, default=0.0, metavar="X",
        help="of what tokens become in sub-models, against a live teacher, layer by layer (default: 0)",
    )  # fmt: skip
    drop.add_argument(
        "--vote-weight", type=float, default=10.0, metavar="X",
        help="span QA: of the votes that answers lack to survive; 0 is the papers' training (default: 10)",
    )  # fmt: skip
    drop.add_argument(
        "--vote-margin", type=float, default=0.5, metavar="X",
        help="by how much they must lead, in log votes (default: 0.5)",
    )  # fmt: skip
    drop.add_argument(
        "--take-turns",
        action="store_true",
        help="one sub-model per batch, at random, in place of all: faster; with --teacher one pass in all",
    )

    train = parser.add_argument_group("training")
    train.add_argument("--batch-tokens", type=int, default=8192, metavar="N", help="per batch (default: 8192)")
    train.add_argument("--accumulation", type=int, default=1, metavar="N", help="batches per step (default: 1)")
    train.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="peak (default: 1e-4)")
    train.add_argument(
        "--warmup", type=float, default=0.06, metavar="X", help="share of the steps (default: 0.06)"
    )
    train.add_argument("--weight-decay", type=float, default=0.01, metavar="X", help="(default: 0.01)")
    train.add_argument("--clip", type=float, default=1.0, metavar="X", help="largest gradient norm (default: 1)")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    train.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    train.add_argument(
        "--checkpoint-minutes", type=float, default=5.0, metavar="X", help="between checkpoints (default: 5)"
    )

    watch = parser.add_argument_group("watching")
    watch.add_argument("--log-steps", type=int, default=10, metavar="N", help="per log line (default: 10)")
    watch.add_argument(
        "--eval", dest="assess_file", metavar="FILE",
        help="measure accuracy before and after: SQuAD .json (odd articles), GLUE-like .tsv, STS .csv",
    )  # fmt: skip
    watch.add_argument(
        "--eval-length", dest="assess_lengths", action="append", default=[], metavar="VALUES",
        help="also with this length config, such as 1.0,.73,.71,.46,.29,.12; repeatable",
    )  # fmt: skip
    watch.add_argument("--eval-steps", type=int, metavar="N", help="and every N steps")
    watch.add_argument("--eval-sample", type=int, default=1000, metavar="N", help="items measured (default: 1000)")
    watch.add_argument("--plot", metavar="PNG", help="draw the log when done (needs matplotlib)")


def run(arguments: argparse.Namespace, read_length: Callable[[str], str | LengthConfig]) -> dict[str, Any]:
    """Trains as the arguments say; returns the report of ``train_length_drop``.

    Args:
        arguments: of :func:`add_arguments`.
        read_length: reads a length config as ``--length`` of the other commands does; names come back as they
            are, and no checkpoint has names.
    """
    from qla_runtime.training import require_packages

    require_packages()
    from qla_runtime.training.length_drop import LengthDropOptions, train_length_drop
    from qla_runtime.training.loop import LoopOptions

    lengths = {text: _config("--eval-length", text, read_length) for text in arguments.assess_lengths}
    smallest = None
    if arguments.smallest is not None:
        config = _config("--smallest", arguments.smallest, read_length)
        if config.rule != "ratio":
            raise InputError(f"--smallest {arguments.smallest!r} holds counts; give shares of the sequence")
        smallest = config.values
    report = train_length_drop(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        loop=LoopOptions(
            steps=arguments.steps,
            epochs=arguments.epochs,
            minutes=arguments.minutes,
            learning_rate=arguments.learning_rate,
            warmup=arguments.warmup,
            weight_decay=arguments.weight_decay,
            clip=arguments.clip,
            accumulation=arguments.accumulation,
            train_word_embeddings=arguments.train_word_embeddings,
            seed=arguments.seed,
            checkpoint_minutes=arguments.checkpoint_minutes,
            log_steps=arguments.log_steps,
            assess_steps=arguments.eval_steps,
        ),
        options=LengthDropOptions(
            ratio_bound=arguments.ratio_bound,
            smallest=smallest,
            random_passes=arguments.random_passes,
            layer_drop=arguments.layer_drop,
            task_weight=arguments.task_weight,
            distill_weight=arguments.distill_weight,
            hidden_weight=arguments.hidden_weight,
            vote_weight=arguments.vote_weight,
            vote_margin=arguments.vote_margin,
            take_turns=arguments.take_turns,
            batch_tokens=arguments.batch_tokens,
        ),
        task=arguments.task,
        max_length=arguments.max_length,
        new_head=arguments.new_head,
        skip_bad_rows=arguments.skip_bad_rows,
        teacher=arguments.teacher,
        live_teacher=arguments.live_teacher,
        precision=arguments.precision,
        assess_file=arguments.assess_file,
        assess_lengths=lengths,
        assess_sample=arguments.eval_sample,
    )
    if arguments.plot:
        from qla_runtime.training.plot import plot

        plot(Path(arguments.out), arguments.plot)
    return report


def _config(option: str, text: str, read_length: Callable[[str], str | LengthConfig]) -> LengthConfig:
    config = read_length(text)
    if isinstance(config, str):
        raise InputError(f"{option} {text!r} is no length config; give one value per layer")
    return config
