"""``qla search``: arguments and words, and nothing that a library caller would miss."""

from __future__ import annotations

import argparse
from typing import Any

from qla_runtime import settings
from qla_runtime.search.options import SearchOptions

EPILOG = """\
Every measurement is on disk before the next one begins: the same command goes on with an interrupted search and
ends at the same result, and with more --generations it continues a finished one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``qla search``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
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

    groups = {
        "what is measured": "articles sample screen cost",
        "evolution": "start generations population mutations crossovers seed grid lowest drop_bound",
        "choice": "balanced_loss fast_loss",
    }
    for title, names in groups.items():
        settings.add_arguments(parser.add_argument_group(title), SearchOptions, *names.split())


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Searches as the arguments of :func:`add_arguments` say; returns the report of ``search``."""
    from qla_runtime.search.pipeline import search

    return search(
        arguments.package,
        arguments.data,
        settings.from_arguments(SearchOptions, arguments),
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
