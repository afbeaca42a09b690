"""What a search is asked to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

from qla_runtime.errors import InputError
from qla_runtime.evaluation.questions import ARTICLES
from qla_runtime.lengths.configs import LengthConfig

COSTS = ("time", "macs")


@dataclass(frozen=True)
class SearchOptions:
    """The options of ``qla search``, under the same names.

    Attributes:
        articles: of a SQuAD file: ``odd`` positions (dev-select), ``even`` or ``all``.
        sample: items of the selection data that decide, evenly spaced; None takes all.
        screen: evolve on this many of them, and measure only the frontier on the whole sample; None evolves
            on the whole sample.
        cost: ``time`` (of this machine) or ``macs`` (on the real lengths of the sample).
        start: configs to begin with, besides full and constant rates: a share per layer, such as those that
            the model was trained around.
        generations: rounds of mutation and crossover.
        population: constant-rate configs to begin with, besides full and the smallest.
        mutations: accepted per generation.
        crossovers: accepted per generation.
        seed: of every draw.
        grid: entries of a config are multiples of 1 / ``grid``.
        lowest: no entry is below this share; None is one step of the grid.
        drop_bound: the smallest config keeps (1 - ``drop_bound``)^i in layer i, i from 1; nothing cheaper is
            looked at, except what ``start`` holds.
        balanced_loss: points that ``balanced`` may lose against ``full``.
        fast_loss: points that ``fast`` may lose.

    Raises:
        InputError: a value out of range.
    """

    articles: str = "odd"
    sample: int | None = 1000
    screen: int | None = None
    cost: str = "time"
    start: tuple[tuple[float, ...], ...] = ()
    generations: int = 30
    population: int = 20
    mutations: int = 30
    crossovers: int = 30
    seed: int = 0
    grid: int = 64
    lowest: float | None = None
    drop_bound: float = 0.2
    balanced_loss: float = 0.5
    fast_loss: float = 1.5

    def __post_init__(self) -> None:
        _check_choice("articles", self.articles, ARTICLES)
        _check_choice("cost", self.cost, COSTS)
        for name in ("sample", "screen"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), 2)
        for name in ("generations", "population", "mutations", "crossovers", "seed"):
            _check_count(name, getattr(self, name), 0)
        _check_count("grid", self.grid, 2, 4096)
        if self.lowest is not None:
            _check_number("lowest", self.lowest, "a share above 0 and below 1", lambda share: 0 < share < 1)
        _check_number("drop-bound", self.drop_bound, "a share above 0 and below 1", lambda share: 0 < share < 1)
        for name, points in (("balanced-loss", self.balanced_loss), ("fast-loss", self.fast_loss)):
            _check_number(name, points, "points of the metric, 0 or more", lambda points: points >= 0)
        for values in self.start:
            LengthConfig.ratio(values)
        if self.screen is not None and self.sample is not None and self.screen >= self.sample:
            raise InputError(
                f"--screen {self.screen} is no smaller than --sample {self.sample}; give fewer, or leave it out"
            )

    @property
    def lowest_step(self) -> int:
        """``lowest`` in steps of the grid, rounded up."""
        return 1 if self.lowest is None else math.ceil(self.lowest * self.grid - 1e-6)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"--{name} is {value!r}; it must be one of {', '.join(choices)}")


def _check_count(name: str, value: object, least: int, most: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        raise InputError(f"--{name} is {value!r}; it must be a whole number from {least} to {most}")


def _check_number(name: str, value: object, kind: str, fits: Callable[[float], bool]) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not fits(value):
        raise InputError(f"--{name} is {value!r}; it must be {kind}")
