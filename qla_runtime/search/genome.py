"""Length configs as a search sees them: non-rising whole numbers, one per layer, in steps of a grid.

A genome ``(48, 32)`` on a grid of 64 is ``LengthConfig.ratio((0.75, 0.5))``. Whole numbers make two equal
configs equal, so that nothing is measured twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import LengthConfig

Genome = tuple[int, ...]

_BISECTIONS = 20
"""Halvings of a rate's range: far finer than a step of any grid moves it."""


@dataclass(frozen=True)
class Space:
    """The genomes of one model.

    Attributes:
        layers: entries of a genome.
        grid: the step that keeps every token.
        lowest: the smallest step.
        drop_bound: the rate of the smallest constant-rate genome.

    Raises:
        InputError: the grid is so coarse, or its lowest step so high, that only ``full`` is left.
    """

    layers: int
    grid: int
    lowest: int
    drop_bound: float

    def __post_init__(self) -> None:
        if self.smallest == self.full:
            raise InputError(
                f"--grid {self.grid} with --drop-bound {self.drop_bound:g} leaves no config but full; use a finer "
                "grid, a larger bound, or a lower --lowest"
            )

    @property
    def full(self) -> Genome:
        """Keeps every token."""
        return (self.grid,) * self.layers

    @property
    def smallest(self) -> Genome:
        """The constant-rate genome at ``drop_bound``."""
        return self.constant_rate(self.drop_bound)

    def config(self, genome: Genome) -> LengthConfig:
        """What the engine runs."""
        return LengthConfig.ratio([step / self.grid for step in genome])

    def nearest(self, config: LengthConfig) -> Genome:
        """A ratio config on the grid.

        Raises:
            InputError: it has not one entry per layer.
        """
        config.check_layers(self.layers)
        return tuple(max(self.lowest, round(value * self.grid)) for value in config.values)

    def constant_rate(self, rate: float) -> Genome:
        """Every layer drops the share ``rate`` of what it has: (1 - rate)^i in layer i, to the nearest step."""
        shares = [(1 - rate) ** i for i in range(1, self.layers + 1)]
        return tuple(max(self.lowest, round(share * self.grid)) for share in shares)

    def constant_rate_at(self, cost: Callable[[Genome], float], target: float) -> Genome:
        """The cheapest constant-rate genome that costs no less than ``target``.

        Args:
            cost: does not fall where an entry rises.
            target: at most the cost of :attr:`full`.
        """
        low, high = 0.0, self.drop_bound
        if cost(self.smallest) >= target:
            return self.smallest
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if cost(self.constant_rate(middle)) >= target:
                low = middle
            else:
                high = middle
        return self.constant_rate(low)

    def spaced(self, cost: Callable[[Genome], float], count: int) -> list[Genome]:
        """``count`` constant-rate genomes whose costs lie evenly between those of the smallest and of full."""
        targets = np.linspace(cost(self.smallest), cost(self.full), count + 2)[1:-1]
        return [self.constant_rate_at(cost, target) for target in targets.tolist()]

    def mutate(self, parent: Genome, draw: np.random.Generator) -> Genome:
        """Draws each entry anew with probability 1/2: between the parent's next one and the child's last one.

        The parent's entries do not rise, so that range is never empty, and the child's do not rise either.
        """
        child: list[int] = []
        for i, step in enumerate(parent):
            if draw.random() < 0.5:
                low = parent[i + 1] if i + 1 < self.layers else self.lowest
                high = child[-1] if child else self.grid
                step = int(draw.integers(low, high, endpoint=True))
            child.append(step)
        return tuple(child)

    @staticmethod
    def cross(first: Genome, second: Genome) -> Genome:
        """The mean of two genomes, entry by entry, rounded up to the grid."""
        return tuple((a + b + 1) // 2 for a, b in zip(first, second, strict=True))
