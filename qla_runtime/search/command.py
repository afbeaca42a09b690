"""``qla search``: arguments and words, and nothing that a library caller would miss."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from qla_runtime.evaluation.questions import ARTICLES
from qla_runtime.search.options import COSTS, SearchOptions

EPILOG = """\
Every measurement is on disk before the next one begins: the same command goes on with an interrupted search and
ends at the same result, and with more --generations it continues a finished one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``qla search``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    default = SearchOptions()
    parser.add_argument(
        "package", metavar="PACKAGE", help="folder of the package; its length configs are replaced"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="selection data: SQuAD .json, STS benchmark .csv, or GLUE-like .tsv, .csv or .jsonl",
    )
    parser.add_argument("--run", metavar="FOLDER", help="of the measurements (default: PACKAGE-search, here)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engine (default: what it may use)")
    parser.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows of DATA that cannot be read, and count them"
    )
    parser.add_argument("--no-plot", action="store_true", help="do not draw FOLDER/frontier.png")

    measure = parser.add_argument_group("what is measured")
    measure.add_argument(
        "--articles", choices=ARTICLES, default=default.articles, help="of a SQuAD file (default: %(default)s)"
    )
    measure.add_argument(
        "--sample", type=_count_or_all, default=default.sample, metavar="N|all",
        help="items that decide, evenly spaced (default: %(default)s)",
    )  # fmt: skip
    measure.add_argument(
        "--screen", type=int, metavar="N",
        help="evolve on N of them, then measure the frontier on the whole sample (default: no)",
    )  # fmt: skip
    measure.add_argument(
        "--cost", choices=COSTS, default=default.cost,
        help="time on this machine, or macs on the sample's real lengths (default: %(default)s)",
    )  # fmt: skip

    evolution = parser.add_argument_group("evolution")
    evolution.add_argument(
        "--start", type=_shares, action="append", default=[], metavar="VALUES",
        help="a config to begin with besides constant rates, such as 1,.9,.7,.5,.2,.1; repeatable",
    )  # fmt: skip
    for name, text in (
        ("generations", "rounds"),
        ("population", "constant-rate configs to begin with"),
        ("mutations", "new configs by mutation, per generation"),
        ("crossovers", "new configs by crossover, per generation"),
        ("seed", "of every draw"),
        ("grid", "a config's entries are multiples of 1/N"),
    ):
        evolution.add_argument(
            f"--{name}",
            type=int,
            default=getattr(default, name),
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    evolution.add_argument("--lowest", type=float, metavar="SHARE", help="smallest entry (default: 1/grid)")
    evolution.add_argument(
        "--drop-bound", type=float, default=default.drop_bound, metavar="P",
        help="the cheapest config drops the share P in every layer (default: %(default)s)",
    )  # fmt: skip

    choice = parser.add_argument_group("choice")
    for name, loss in (("balanced", default.balanced_loss), ("fast", default.fast_loss)):
        choice.add_argument(
            f"--{name}-loss", type=float, default=loss, metavar="POINTS",
            help=f"what {name} may lose against full (default: %(default)s)",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Searches as the arguments of :func:`add_arguments` say; returns the report of ``search``."""
    from qla_runtime.search.pipeline import search

    chosen = {field.name: getattr(arguments, field.name) for field in fields(SearchOptions)}
    options = SearchOptions(**chosen | {"start": tuple(arguments.start)})
    return search(
        arguments.package,
        arguments.data,
        options,
        run=arguments.run,
        num_threads=arguments.threads,
        draw=not arguments.no_plot,
        skip_bad_rows=arguments.skip_bad_rows,
    )


def text(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    metric = report["metric"]
    lines = [
        f"{report['data']}; {report['measurements']} measurements, {len(report['frontier'])} on the frontier",
        f"{'':<10} {'cost':>7} {'MACs':>7} {metric:>9} {'loss':>6}   {'constant rate':>13}   per layer",
    ]
    for name, entry in report["configs"].items():
        rival = entry.get("constant_rate")
        beside = f"{rival['accuracy']:.2f}" if rival else ""
        values = ", ".join(f"{value:.3g}" for value in entry["values"])
        lines.append(
            f"{name:<10} {entry['cost']:>7.1%} {entry['macs_share']:>7.1%} {entry['accuracy']:>9.2f} "
            f"{entry['loss']:>6.2f}   {beside:>13}   {values}"
        )
    error = f"sampling error of {metric}: {report['sampling_error']:.2f} points (one standard error)"
    return "\n".join([*lines, error, f"wrote {report['package']}"])


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else int(text)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in text.split(","))


_shares.__name__ = "list of shares"
_count_or_all.__name__ = "number"  # argparse: "invalid number value: 'x'"
