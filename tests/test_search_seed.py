"""The seed of a search decides what it draws."""

from __future__ import annotations

from qla_runtime.search.evolve import Plan, Point, evolve
from qla_runtime.search.genome import Genome, Space


def genomes(seed: int) -> list[Genome]:
    """What a search over made-up accuracies measures."""
    space = Space(layers=4, grid=32, lowest=1, drop_bound=0.5)

    def measure(genome: Genome, origin: str) -> Point:
        return Point(genome, origin, cost=sum(genome) / 128, accuracy=50 + sum(genome) / 4)

    start = {space.full: "given", space.smallest: "constant"}
    return [point.genome for point in evolve(space, start, lambda genome: True, measure, Plan(2, 5, 5, seed))]


def test_a_seed_repeats_a_search_and_another_does_not():
    assert genomes(1) == genomes(1) != genomes(2)
