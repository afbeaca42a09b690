"""Evolution of the Pareto frontier of accuracy over cost, as in the Length-Adaptive Transformer.

Kim and Cho, "Length-Adaptive Transformer: Train Once with Length Drop, Use Anytime with Search" (ACL 2021).
Where the published code differs from its paper, this follows the paper: only accepted children count, and of
points of equal cost the frontier keeps one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qla_runtime.search.genome import Genome, Space

ATTEMPTS = 50
"""Proposals per child asked for. Near the end of a small space hardly anything is new; a round then ends with
fewer children instead of never."""


@dataclass(frozen=True)
class Point:
    """A measured genome.

    Attributes:
        genome: which.
        origin: ``given``, ``constant``, ``mutation`` or ``crossover``.
        cost: as a share of keeping every token.
        accuracy: in percent.
    """

    genome: Genome
    origin: str
    cost: float
    accuracy: float


@dataclass(frozen=True)
class Plan:
    """Rounds of evolution, children accepted in each, and the seed of every draw."""

    generations: int
    mutations: int
    crossovers: int
    seed: int


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats: cheapest first, each more accurate than the one before.

    A point is beaten by one that is no dearer and no less accurate, and better in one of both. Of points
    equal in both, the one with the lowest genome stands for all.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy, point.genome)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def evolve(
    space: Space,
    start: Mapping[Genome, str],
    accept: Callable[[Genome], bool],
    measure: Callable[[Genome, str], Point],
    plan: Plan,
) -> list[Point]:
    """Measures ``start``, then generation by generation the children of the frontier.

    Every decision follows from the seed and from what was measured before it. With a ``measure`` that
    remembers, an interrupted search therefore repeats its way at no cost and goes on where it stopped; and one
    of more generations begins with those of fewer.

    Args:
        space: what genomes there are.
        start: what to begin with, and each one's origin; full and the smallest are parents in every
            generation.
        accept: whether a child is worth measuring.
        measure: called once per genome, with its origin.
        plan: how long.

    Returns:
        Every measured point, in the order of measurement.
    """
    points = {genome: measure(genome, origin) for genome, origin in start.items()}
    for generation in range(plan.generations):
        draw = np.random.default_rng([plan.seed, generation])
        parents = sorted({point.genome for point in frontier(points.values())} | {space.full, space.smallest})
        for genome, origin in _children(space, parents, points, accept, plan, draw):
            points[genome] = measure(genome, origin)
    return list(points.values())


def _children(
    space: Space,
    parents: Sequence[Genome],
    known: Collection[Genome],
    accept: Callable[[Genome], bool],
    plan: Plan,
    draw: np.random.Generator,
) -> list[tuple[Genome, str]]:
    """New genomes of one generation, each with its origin."""

    def mutation() -> Genome:
        return space.mutate(parents[int(draw.integers(len(parents)))], draw)

    def crossover() -> Genome:
        first, second = draw.choice(len(parents), 2, replace=False)
        return space.cross(parents[first], parents[second])

    children: dict[Genome, str] = {}
    for propose, count in ((mutation, plan.mutations), (crossover, plan.crossovers)):
        wanted = len(children) + count
        for _ in range(ATTEMPTS * count):
            if len(children) == wanted:
                break
            child = propose()
            if child not in known and child not in children and accept(child):
                children[child] = propose.__name__
    return list(children.items())
