"""``--length``, ``--latency-ms``, ``--max-loss`` and ``--escalate``: how a call chooses a length config."""

from __future__ import annotations

import argparse
import math

from qla_runtime import Escalate, InputError, LatencyBudget, LengthConfig, MaxLoss
from qla_runtime.cli.running import STEP
from qla_runtime.errors import shown
from qla_runtime.lengths.configs import Length


def add_lengths(
    parser: argparse.ArgumentParser,
    latency: str = f"per call of up to {STEP} texts; in eval squad per question",
) -> None:
    """The ways to choose a length; at most one may be given.

    Args:
        parser: of the command.
        latency: what a latency budget is of.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--length",
        metavar="NAME|VALUES",
        help="a name of the package (full, balanced, fast), or one value per layer with commas between: "
        "ratios such as 1.0,.73,.71 or whole token counts such as 315,251,242 (default: full)",
    )
    group.add_argument(
        "--latency-ms",
        type=float,
        metavar="MS",
        help=f"the most accurate config that is predicted to fit in MS milliseconds ({latency})",
    )
    group.add_argument(
        "--max-loss",
        type=float,
        metavar="POINTS",
        help="the cheapest config within POINTS of full, by the package's measured accuracy",
    )
    group.add_argument(
        "--escalate",
        metavar="CHEAP:DEAR[:THRESHOLD]",
        help="run CHEAP, and again with DEAR what scores below THRESHOLD (default: the package's for these two "
        "names, else 0.5); both as in --length",
    )


def chosen_length(arguments: argparse.Namespace) -> Length:
    """What the arguments of :func:`add_lengths` say; None where none is given.

    Raises:
        InputError: a value that is no length, budget, loss or escalation.
    """
    if arguments.latency_ms is not None:
        return LatencyBudget(arguments.latency_ms)
    if arguments.max_loss is not None:
        return MaxLoss(arguments.max_loss)
    if arguments.escalate is not None:
        return _read_escalation(arguments.escalate)
    return None if arguments.length is None else read_length(arguments.length)


def length_in_words(arguments: argparse.Namespace) -> str:
    """The same, as reports show it."""
    length = chosen_length(arguments)
    return arguments.length or "full" if length is None or arguments.length else str(length)


def read_length(text: str) -> str | LengthConfig:
    """A value of ``--length``: a name, ratios (with a decimal point) or token counts (without).

    Raises:
        InputError: numbers that are no length config.
    """
    if not set(text) <= set("0123456789.,-+eE ") or not any(c.isdigit() for c in text):
        return text
    try:
        values = [float(part) for part in text.split(",")]
        if "inf" in map(str, values):  # digits beyond what a number holds
            raise ValueError
    except ValueError:
        raise InputError(
            f"--length {shown(text)} is neither a name nor numbers with commas between; give one ratio "
            "(1.0,.73,.71) or token count (315,251,242) per layer"
        ) from None
    if any(c in text for c in ".eE"):
        return LengthConfig.ratio(values)
    if not all(map(math.isfinite, values)):
        raise InputError(f"--length {shown(text)} holds a number of too many digits; token counts are below 2^31")
    if set(values) == {1.0}:
        raise InputError(
            f"--length {text!r} would keep 1 token per layer; write ratios with a point (1.0), or use 'full'"
        )
    return LengthConfig.tokens(int(value) for value in values)


def _read_escalation(text: str) -> Escalate:
    """Two lengths and perhaps a threshold, with colons between."""
    cheap, dear, *threshold = text.split(":") if 1 <= text.count(":") <= 2 else ("", "")
    try:
        thresholds = [float(part) for part in threshold]
    except ValueError:
        cheap = ""
    if not cheap or not dear:
        raise InputError(
            f"--escalate {shown(text)} is not CHEAP:DEAR or CHEAP:DEAR:THRESHOLD; give two lengths as in "
            "--length, and a threshold such as 0.5"
        )
    return Escalate(read_length(cheap), read_length(dear), *thresholds)
