"""What a search is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.settings import check_limits, one_of, points, setting, share, whole
from qla_runtime.texts.squad import ARTICLES

COSTS = ("time", "macs")


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else int(text)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in text.split(","))


_count_or_all.__name__ = "number"  # argparse: "invalid number value: 'x'"
_shares.__name__ = "list of shares"


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

    articles: str = setting(
        "odd", "of a SQuAD file (default: %(default)s)", choices=ARTICLES, limit=one_of(ARTICLES)
    )
    sample: int | None = setting(
        1000, "items that decide, evenly spaced (default: %(default)s)", read=_count_or_all, limit=whole(2),
        metavar="N|all",
    )  # fmt: skip
    screen: int | None = setting(
        None, "evolve on N of them, then measure the frontier on the whole sample (default: no)", limit=whole(2),
        metavar="N",
    )  # fmt: skip
    cost: str = setting(
        "time", "time on this machine, or macs on the sample's real lengths (default: %(default)s)",
        choices=COSTS, limit=one_of(COSTS),
    )  # fmt: skip
    start: tuple[tuple[float, ...], ...] = setting(
        (), "a config to begin with besides constant rates, such as 1,.9,.7,.5,.2,.1; repeatable", read=_shares,
        repeatable=True, metavar="VALUES",
    )  # fmt: skip
    generations: int = setting(30, "rounds (default: %(default)s)", limit=whole(0), metavar="N")
    population: int = setting(
        20, "constant-rate configs to begin with (default: %(default)s)", limit=whole(0), metavar="N"
    )
    mutations: int = setting(
        30, "new configs by mutation, per generation (default: %(default)s)", limit=whole(0), metavar="N"
    )
    crossovers: int = setting(
        30, "new configs by crossover, per generation (default: %(default)s)", limit=whole(0), metavar="N"
    )
    seed: int = setting(0, "of every draw (default: %(default)s)", limit=whole(0), metavar="N")
    grid: int = setting(
        64, "a config's entries are multiples of 1/N (default: %(default)s)", limit=whole(2, 4096), metavar="N"
    )
    lowest: float | None = setting(None, "smallest entry (default: 1/grid)", limit=share(), metavar="SHARE")
    drop_bound: float = setting(
        0.2, "the cheapest config drops the share P in every layer (default: %(default)s)", limit=share(),
        metavar="P",
    )  # fmt: skip
    balanced_loss: float = setting(
        0.5, "what balanced may lose against full (default: %(default)s)", limit=points(), metavar="POINTS"
    )
    fast_loss: float = setting(
        1.5, "what fast may lose against full (default: %(default)s)", limit=points(), metavar="POINTS"
    )

    def __post_init__(self) -> None:
        check_limits(self, in_flags=True)
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
