"""What the commands share that write a whole file: how they run the job, and what they say at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qla_runtime.bulk.options import FileOptions
from qla_runtime.cli.lengths import chosen_length
from qla_runtime.cli.printing import print_json, say
from qla_runtime.cli.running import open_engine
from qla_runtime.settings import from_arguments

if TYPE_CHECKING:
    from qla_runtime.bulk.job import Report

INPUT_HELP = "a .parquet, .jsonl or .ndjson file, or a .txt file with a text per line"
BULK_LATENCY = "of each text on average, settled once on the first rows"
"""What a latency budget is of, in a job over a file."""


def write_file(arguments: argparse.Namespace, job: Callable[..., Report], options: type[Any]) -> None:
    """Runs a job from ``arguments.source`` to ``arguments.out``, and says what it did.

    Args:
        arguments: those of the command, with the options of ``FileOptions`` and of ``options``.
        job: of :mod:`qla_runtime.bulk.job`.
        options: the settings that ``job`` takes as ``options``.
    """
    report = job(
        open_engine(arguments),
        arguments.source,
        arguments.out,
        chosen_length(arguments),
        files=from_arguments(FileOptions, arguments),
        options=from_arguments(options, arguments),
        progress=True,
    )
    _tell(report, arguments.out, arguments.json)


def _tell(report: Report, out: str, json: bool) -> None:
    """Says what a job did: on standard error in words, or as JSON on standard output."""
    if json:
        print_json(asdict(report) | {"out": out})
        return
    now = report.rows - report.resumed
    speed = f"{now / report.seconds:,.0f} texts/s" if now else "nothing was left to do"
    parts = [f"wrote {report.rows:,} rows to {out}", f"length {report.length or 'full'}", speed]
    if report.resumed:
        parts.append(f"{report.resumed:,} rows were done before")
    if report.left_out:
        parts.append(f"{report.left_out:,} bad rows left out")
    say("; ".join(parts), sys.stderr)
