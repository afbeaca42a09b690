"""From measurements to what people read: tables as text or Markdown, and two plots.

A measurement is the median over rounds of a turn's median; a ratio is one of two such medians.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from qla_runtime.drawing import require_matplotlib

OURS = "qla"

Times = Mapping[str, Mapping[str, Sequence[float]]]
"""case -> runner -> milliseconds, one per round. A runner is a runtime, or ``qla`` and a length config."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Columns of equal width; the first is text, the others are figures."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in padded)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def percentile_99(times: Iterable[float]) -> float:
    """The time that one of a hundred exceeds; the longest of fewer than a hundred."""
    ordered = sorted(times)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


def number(value: float) -> str:
    """Three significant figures, never in scientific notation."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


# -------------------------------------------------------------------------------------------- peers


def peers_text(record: Mapping[str, Any], markdown: bool) -> str:
    """The whole report of ``qla bench peers``."""
    title = "### " if markdown else ""
    parts = [
        record["machine_in_words"],
        settings_in_words(record),
        f"Kernels: {', '.join(record['kernels'].values())}",
        f"{title}Milliseconds per call\n\n{speed_table(record['times'], record['peers'], markdown)}",
        f"{title}Bounds\n\n{bounds_text(record, markdown)}",
        f"{title}Opening\n\n{opening_table(record['opening'], markdown)}",
        absent_text(record["absent"], record["refused"]),
        versions_in_words(record["versions"]),
    ]
    return "\n\n".join(part for part in parts if part)


def settings_in_words(record: Mapping[str, Any]) -> str:
    """Threads, cap and rounds in one line."""
    rounds = sorted({len(values) for times in record["times"].values() for values in times.values()})
    counts = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}" if rounds else "no"
    cap = f"; everybody capped to {record['isa']}" if record["isa"] else ""
    return f"{record['threads']} threads each; medians of {counts} interleaved rounds{cap}"


def speed_table(times: Times, peers: Sequence[str], markdown: bool) -> str:
    """Cases down, runtimes across: medians, the fastest peer by name, and how many times slower it is than qla.

    Below a case stand its length configs; peers keep every token, so theirs are the figures of the case.
    """
    head = ["case", OURS, *peers, "fastest peer", "ratio"]
    rows = []
    for case, runners in times.items():
        medians = {runner: median(values) for runner, values in runners.items()}
        theirs = {peer: medians[peer] for peer in peers if peer in medians}
        fastest = min(theirs, key=theirs.__getitem__, default=None)
        for runner, ours in medians.items():
            if runner in peers:
                continue
            length = runner.removeprefix(OURS).strip()
            name = f"{case} {length}".strip()
            cells = [number(theirs[peer]) if peer in theirs else "-" for peer in peers]
            end = [fastest, f"{theirs[fastest] / ours:.2f}x"] if fastest else ["-", "-"]
            rows.append([name, number(ours), *cells, *end])
    return table(head, rows, markdown)


def limits_in_words(limits: Mapping[str, Any]) -> str:
    """What bounds every figure of this run, in one sentence."""
    return (
        f"Measured in this run, {limits['threads']} threads: {limits['macs_per_second'] / 1e9:,.0f} billion "
        f"multiply-accumulates a second ({limits['isa']}, on registers), and "
        f"{limits['bytes_per_second'] / 1e9:.1f} GB/s read from memory."
    )


def shares(ms: float, macs: float, weight_bytes: float, limits: Mapping[str, Any]) -> list[str]:
    """How near a call comes to both limits: its multiply-accumulates, and its weights read once from memory.

    The second may exceed 100 %: weights that stay in a cache don't come from memory.
    """
    seconds = 1e-3 * ms
    return [
        f"{macs / seconds / limits['macs_per_second']:.0%}",
        f"{weight_bytes / seconds / limits['bytes_per_second']:.0%}",
    ]


SHARES = ["of the peak", "of the bandwidth"]


def bounds_text(record: Mapping[str, Any], markdown: bool) -> str:
    """Per case: median and 99th percentile of qla and of the fastest peer, and qla's shares of both limits."""
    limits, rows = record["limits"], []
    for case, times in record["times"].items():
        ours, tails = median(times[OURS]), record["p99"][case]
        theirs = {peer: median(times[peer]) for peer in record["peers"] if peer in times}
        fastest = min(theirs, key=theirs.__getitem__, default=None)
        peer = [number(theirs[fastest]), number(tails[fastest])] if fastest else ["-", "-"]
        reached = shares(ours, **record["work"][case], limits=limits)
        rows.append([case, number(ours), number(tails[OURS]), *peer, *reached])
    head = ["case", "qla", "p99", "fastest peer", "p99", *(f"qla, {name}" for name in SHARES)]
    return f"{limits_in_words(limits)}\n\n{table(head, rows, markdown)}"


def opening_table(opening: Mapping[str, Mapping[str, Sequence[float]]], markdown: bool) -> str:
    """Medians over fresh processes: import and load, first call, and the memory after it."""
    head = ["runtime", "import and load, ms", "first call, ms", "peak memory, MB"]
    rows = [
        [name, *(f"{median(found[key]):,.0f}" for key in ("import_load_ms", "first_call_ms", "peak_rss_mb"))]
        for name, found in opening.items()
    ]
    return table(head, rows, markdown)


def absent_text(absent: Mapping[str, str], refused: Mapping[str, Mapping[str, str]]) -> str:
    """Which figures are missing, and why: whole runtimes, then single cases."""
    lines = [f"- {name} is absent: {reason}" for name, reason in absent.items()]
    for runner, cases in refused.items():
        for reason in dict.fromkeys(cases.values()):
            which = ", ".join(case for case, why in cases.items() if why == reason)
            lines.append(f"- {runner} did not run {which}: {reason}")
    return "\n".join(lines)


def versions_in_words(versions: Mapping[str, Mapping[str, str]]) -> str:
    """Per runtime: each may have an environment of its own."""
    lines = [
        f"- {name}: {', '.join(f'{package} {version}' for package, version in found.items())}"
        for name, found in versions.items()
    ]
    return "\n".join(["Versions", "", *lines])


# ------------------------------------------------------------------------------------------ encoder


def encoder_text(record: Mapping[str, Any], markdown: bool) -> str:
    """The whole report of ``qla bench encoder``."""
    title = "### " if markdown else ""
    rows = []
    for found in record["cases"]:
        ms = median(found["ms"])
        per_second = 1e3 / ms
        rows.append(
            [
                f"{found['case']} {found['length']}",
                number(ms),
                number(percentile_99(found["passes"])),
                number(found["sequences"] * per_second),
                number(found["tokens"] * per_second),
                f"{2 * found['macs'] * per_second / 1e12:.3f}",
                *shares(ms, found["macs"], found["weight_bytes"], record["limits"]),
            ]
        )
    calls = table(["case", "ms", "p99", "sequences/s", "tokens/s", "TOPS", *SHARES], rows, markdown)
    throughput = throughput_table(record["throughput"], markdown)
    return "\n\n".join(
        [
            record["machine_in_words"],
            f"{title}Calls, {record['threads']} threads each\n\n{limits_in_words(record['limits'])}\n\n{calls}",
            f"{title}Threads and streams\n\n{throughput}",
            *(f"- {case} did not run: {reason}" for case, reason in record["refused"].items()),
        ]
    )


def throughput_table(found: Sequence[Mapping[str, Any]], markdown: bool) -> str:
    """Sequences per second; the ratio is to one thread and one stream of the same case."""
    base = {one["case"]: median(one["sequences_per_second"]) for one in reversed(found)}  # the first of a case
    rows = []
    for one in found:
        rate = median(one["sequences_per_second"])
        rows.append(
            [
                one["case"],
                str(one["threads"]),
                str(one["streams"]),
                number(rate),
                f"{rate / base[one['case']]:.2f}x",
            ]
        )
    return table(["case", "threads", "streams", "sequences/s", "ratio"], rows, markdown)


# ------------------------------------------------------------------------------------------ kernels


def kernels_text(record: Mapping[str, Any], markdown: bool) -> str:
    """The whole report of ``qla bench kernels``: one core, every instruction set, and the share of its peak."""
    peaks = {
        one["isa"]: 2e-3 * one["macs"] / median(one["ns"])
        for one in record["kernels"]
        if one["operation"] == "peak"
    }
    rows = []
    for one in record["kernels"]:
        ns = median(one["ns"])
        tops = 2e-3 * one["macs"] / ns
        share = tops / peaks[one["isa"]] if tops and one["isa"] in peaks else 0
        rows.append(
            [
                f"{one['operation']} {one['case']}",
                one["isa"],
                f"{ns / 1e6:.4f}",
                f"{tops:.3f}" if tops else "-",
                f"{one['bytes'] / ns:.1f}" if one["bytes"] else "-",
                f"{share:.0%}" if share and one["operation"] != "peak" else "-",
            ]
        )
    head = ["kernel", "isa", "ms", "TOPS", "GB/s", "of peak"]
    return "\n\n".join([record["machine_in_words"], "One core.", table(head, rows, markdown)])


# -------------------------------------------------------------------------------------------- plots


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes speed.png (times against peers, by case) and accuracy.png (named length configs at 384 tokens).

    Returns:
        What was written: accuracy.png only where the package tells accuracies.

    Raises:
        UnsupportedError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    written = [folder / "speed.png"]
    speed_plot(Figure(figsize=(10, 5), layout="constrained"), record).savefig(written[0], dpi=150)
    points = accuracy_points(record)
    if points:
        written.append(folder / "accuracy.png")
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        accuracy_plot(figure, record, points).savefig(written[1], dpi=150)
    return written


def speed_plot(figure: Any, record: Mapping[str, Any]) -> Any:
    """How many times as long as qla each peer takes."""
    axes = figure.subplots()
    cases = list(record["times"])
    for peer in record["peers"]:
        ratios = [
            (i, median(times[peer]) / median(times[OURS]))
            for i, times in enumerate(record["times"].values())
            if peer in times
        ]
        if ratios:
            axes.plot(*zip(*ratios, strict=True), "o-", label=peer, alpha=0.8)
    axes.axhline(1, color="black")
    axes.annotate("qla, every token kept", (0, 1), textcoords="offset points", xytext=(0, -12), fontsize=9)
    axes.set_xticks(range(len(cases)), cases, rotation=30)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_ylabel("time, as a multiple of qla's")
    axes.set_title(f"{record['machine']['cpu']}, {record['threads']} threads", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return figure


ACCURACY_CASE = "1x384"


def accuracy_points(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """name -> (milliseconds at 1x384, accuracy) of the named length configs that were run and have one."""
    times = record["times"].get(ACCURACY_CASE, {})
    runners = {name: OURS if name == "full" else f"{OURS} {name}" for name in record["accuracy"]}
    return {
        name: (median(times[runner]), record["accuracy"][name]["value"])
        for name, runner in runners.items()
        if runner in times
    }


def accuracy_plot(figure: Any, record: Mapping[str, Any], points: Mapping[str, tuple[float, float]]) -> Any:
    """Accuracy over latency: our length configs, and how long the fastest peer takes."""
    axes = figure.subplots()
    for name, point in points.items():
        axes.plot(*point, "o", color="tab:blue")
        axes.annotate(name, point, textcoords="offset points", xytext=(6, 4))
    times = record["times"][ACCURACY_CASE]
    theirs = {peer: median(times[peer]) for peer in record["peers"] if peer in times}
    if theirs:
        fastest = min(theirs, key=theirs.__getitem__)
        axes.axvline(theirs[fastest], color="tab:orange", label=f"{fastest}, every token kept")
        axes.legend(fontsize=8)
    told = record["accuracy"][next(iter(points))]
    axes.set_xlim(left=0)
    axes.set_xlabel(f"milliseconds at {ACCURACY_CASE}")
    axes.set_ylabel(f"{told['metric']} on {told['data']}")
    axes.set_title(f"{record['model']} on {record['machine']['cpu']}, {record['threads']} threads", fontsize=10)
    axes.grid(alpha=0.3)
    return figure
