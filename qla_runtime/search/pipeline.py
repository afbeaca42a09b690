"""The way through a search: read, evolve, choose, write."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qla_runtime import _core
from qla_runtime.bars import bar
from qla_runtime.drawing import require_matplotlib
from qla_runtime.errors import InputError
from qla_runtime.evaluation.statistics import sampling_error
from qla_runtime.lengths.configs import Accuracy, LengthConfig
from qla_runtime.model.package import crc32c
from qla_runtime.search.cost import Cost, macs_share, time_share
from qla_runtime.search.evolve import Plan, Point, evolve, frontier
from qla_runtime.search.genome import Genome, Space
from qla_runtime.search.options import SearchOptions
from qla_runtime.search.package import Package
from qla_runtime.search.plot import plot
from qla_runtime.search.run_folder import SearchFolder
from qla_runtime.search.selection import Selection, read_selection
from qla_runtime.texts.files import read_bytes

_RESULT_ONLY = ("generations", "balanced_loss", "fast_loss")
"""Options that no measurement depends on: a search may go on with others."""


def search(
    package: str | os.PathLike[str],
    data: str | os.PathLike[str],
    options: SearchOptions | None = None,
    *,
    run: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
    draw: bool = True,
    progress: bool = True,
    skip_bad_rows: bool = False,
) -> dict[str, Any]:
    """Finds length configs on the Pareto frontier of accuracy and cost, and writes them into the package.

    The INT8 engine itself measures. The same call continues an interrupted search and ends at the same result
    (with ``cost="time"``, at one that keeps every measurement made before).

    Args:
        package: the package's folder; its length configs are replaced at the end.
        data: the selection data: SQuAD json, STS csv or a GLUE-like table, as the package's task asks.
        options: what to search for, and how long.
        run: folder of the measurements; None is the package's name with ``-search`` behind it, here.
        num_threads: of the engine.
        draw: draw the frontier into the run folder.
        progress: show a bar on standard error.
        skip_bad_rows: leave out rows of a table that cannot be used, with a warning, in place of an error.

    Returns:
        What ``result.json`` holds; see docs/search.md.

    Raises:
        InputError: unfit data, a run folder with other settings, a package that cannot be or was replaced, or
            no room.
        PackageError: the package is damaged.
        UnsupportedError: a task without a metric, or matplotlib is missing.
        QlaError: a measurement cannot be written; those before are kept.
    """
    options = options or SearchOptions()
    if draw:
        require_matplotlib("pass --no-plot")  # a search takes hours, and the picture comes last
    searched = Package(package, num_threads)
    searched.check_writable()
    space = Space(searched.engine.layers, options.grid, options.lowest_step, options.drop_bound)
    selection = read_selection(searched, Path(data), options.articles, skip_bad_rows=skip_bad_rows)
    whole, first = selection.sample(options.sample), selection.sample(options.screen or options.sample)
    settings = _settings(searched, Path(data), options) | ({"skip_bad_rows": True} if skip_bad_rows else {})
    folder = Path(f"{searched.path.name}-search" if run is None else run)
    with SearchFolder(folder, settings) as log:
        expected = (
            2
            + options.population
            + len(options.start)
            + options.generations * (options.mutations + options.crossovers)
        )
        with bar(expected, "search", progress, unit="config") as shown:
            bench = Bench(searched, first, options.cost, space, log, shown)
            points = _evolved(bench, options)
            if len(first.items) < len(whole.items):
                bench = Bench(searched, whole, options.cost, space, log, shown)
                points = _again(bench, points)
            outcome = _choose(bench, points, options)
        result = _report(bench, outcome, searched, len(log)) | _sampling(bench, outcome, options)
        if result["small_sample"]:
            warnings.warn(result["small_sample"], stacklevel=2)
        log.write_json("result.json", result)
        if searched.identity() != settings["package"]:
            raise InputError(
                f"{searched.path}: was replaced by another model during the search, and is left as it is. "
                f"What was found is in {folder / 'result.json'}"
            )
        _write(bench, outcome, searched)
        if draw:
            facts = {"cost": options.cost, "metric": whole.metric, "data": whole.description}
            plot(folder / "frontier.png", points, outcome.best, outcome.named, **facts)
    return result


class Bench:
    """One sample of the selection data: what a genome costs and scores on it, measured once.

    Args:
        package: the searched package.
        selection: the sample.
        cost: ``macs`` or ``time``.
        space: what genomes mean.
        log: what was measured before, and where new measurements go.
        shown: the progress bar; counts what is measured here and now.
    """

    def __init__(
        self,
        package: Package,
        selection: Selection,
        cost: str,
        space: Space,
        log: SearchFolder,
        shown: Any,
    ) -> None:
        sequences = selection.sequences(package.text_encoder())
        lengths = sequences.offsets[1:] - sequences.offsets[:-1]
        self.selection = selection
        self.space = space
        self._engine = package.engine
        self._macs = macs_share(package.macs, lengths, package.engine.layers)
        self._cost: Cost = self._macs if cost == "macs" else time_share(package.engine, sequences)
        self._log = log
        self._shown = shown

    def macs(self, genome: Genome) -> float:
        """Arithmetic over the sample, as a share of keeping every token."""
        return self._macs(self.space.config(genome))

    def expect(self, count: int) -> None:
        """So many more measurements are to come than the progress bar knows of."""
        self._shown.total += count

    def measure(self, genome: Genome, origin: str) -> Point:
        """Cost and accuracy, from the log where they are there."""
        items = len(self.selection.items)
        found = self._log.find(items, genome)
        if found is not None:
            self.expect(-1)
            return replace(found, origin=origin)
        config = self.space.config(genome)
        accuracy = self.selection.score(self._engine, config)
        point = Point(genome, origin, self._cost(config), accuracy)
        self._log.add(items, point)
        self._shown.update()
        return point


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: the frontier, cheapest first.
        named: ``full``, ``balanced`` and ``fast``.
        baselines: for the last two, the cheapest constant-rate config of no less arithmetic.
    """

    best: list[Point]
    named: dict[str, Point]
    baselines: dict[str, Point]


def _evolved(bench: Bench, options: SearchOptions) -> list[Point]:
    """Everything that evolution measured."""
    space = bench.space
    rates = [space.full, space.smallest, *space.spaced(bench.macs, options.population)]
    given = [space.nearest(LengthConfig.ratio(values)) for values in options.start]
    start = dict.fromkeys(given, "given") | dict.fromkeys(rates, "constant")
    cheapest = bench.macs(space.smallest)
    plan = Plan(options.generations, options.mutations, options.crossovers, options.seed)
    return evolve(space, start, lambda genome: bench.macs(genome) >= cheapest, bench.measure, plan)


def _again(bench: Bench, points: Sequence[Point]) -> list[Point]:
    """The frontier and the constant rates of a smaller sample, measured on this one."""
    kept = {point.genome: point.origin for point in points if point.origin == "constant"}
    kept |= {point.genome: point.origin for point in frontier(points)}
    bench.expect(len(kept))
    return [bench.measure(genome, origin) for genome, origin in kept.items()]


def _choose(bench: Bench, points: Sequence[Point], options: SearchOptions) -> Outcome:
    best = frontier(points)
    full = next(point for point in points if point.genome == bench.space.full)
    named, baselines = {"full": full}, {}
    for name, loss in (("balanced", options.balanced_loss), ("fast", options.fast_loss)):
        # full itself, or what beats it, is always within the loss.
        named[name] = next(point for point in best if point.accuracy >= full.accuracy - loss)
        rival = bench.space.constant_rate_at(bench.macs, bench.macs(named[name].genome))
        bench.expect(1)
        baselines[name] = bench.measure(rival, "constant")
    return Outcome(best, named, baselines)


def _report(bench: Bench, outcome: Outcome, package: Package, measurements: int) -> dict[str, Any]:
    full = outcome.named["full"]

    def facts(point: Point) -> dict[str, Any]:
        return {
            "values": [step / bench.space.grid for step in point.genome],
            "origin": point.origin,
            "accuracy": point.accuracy,
            "loss": full.accuracy - point.accuracy,
            "cost": point.cost,
            "macs_share": bench.macs(point.genome),
        }

    configs = {name: facts(point) for name, point in outcome.named.items()}
    for name, rival in outcome.baselines.items():
        configs[name]["constant_rate"] = facts(rival)
    return {
        "package": str(package.path),
        "metric": bench.selection.metric,
        "data": bench.selection.description,
        "measurements": measurements,
        "configs": configs,
        "frontier": [facts(point) for point in outcome.best],
    }


def _sampling(bench: Bench, outcome: Outcome, options: SearchOptions) -> dict[str, Any]:
    """How well the sample tells accuracies apart, and a sentence where it is too small for the losses allowed."""
    items, metric = len(bench.selection.items), bench.selection.metric
    # A perfect score on a few items shows no spread; what a single item is worth is uncertain all the same.
    error = max(sampling_error(metric, outcome.named["full"].accuracy, items), 100 / items)
    small = None
    if error > max(options.balanced_loss, options.fast_loss):
        small = (
            f"{items} items are a small sample: another one would move {metric} by {error:.1f} points (one "
            f"standard error), and fast may lose {options.fast_loss:g}. The configs may be chance; give more data "
            "or a larger --sample"
        )
    return {"items": items, "sampling_error": error, "small_sample": small}


def _write(bench: Bench, outcome: Outcome, package: Package) -> None:
    def entry(point: Point) -> tuple[Any, Accuracy]:
        accuracy = Accuracy(bench.selection.metric, point.accuracy, bench.selection.description)
        return bench.space.config(point.genome), accuracy

    package.write_lengths(
        {name: entry(point) for name, point in outcome.named.items()}, [entry(point) for point in outcome.best]
    )


def _settings(package: Package, data: Path, options: SearchOptions) -> dict[str, Any]:
    """What measurements depend on; a run goes on only under the same."""
    settings = {name: value for name, value in vars(options).items() if name not in _RESULT_ONLY}
    settings |= {"package": package.identity(), "data": f"{crc32c(read_bytes(data)):08x}"}
    settings["version"] = _core.version()
    if options.cost == "time":
        settings["num_threads"] = package.engine.num_threads
    return settings
