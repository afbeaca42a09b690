"""The search's genomes and generations: what is drawn, and what is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qla_runtime import InputError
from qla_runtime.search.evolve import Plan, Point, evolve, frontier
from qla_runtime.search.genome import Space


@pytest.mark.parametrize("lowest", [1, 3])
def test_children_stay_on_the_grid_and_do_not_rise(lowest):
    space = Space(6, 32, lowest, 0.2)
    draw = np.random.default_rng(0)
    genomes = {space.full, space.smallest}
    for _ in range(500):
        first, second = (list(genomes)[i] for i in draw.integers(len(genomes), size=2))
        for child in (space.mutate(first, draw), space.cross(first, second)):
            assert len(child) == 6 and all(type(step) is int for step in child)
            assert 32 >= child[0] and child[-1] >= lowest
            assert all(a >= b for a, b in itertools.pairwise(child))
            assert space.config(child).values == tuple(step / 32 for step in child)
            genomes.add(child)
    assert len(genomes) > 300


def test_a_mutation_moves_entries_between_their_neighbours():
    space = Space(3, 16, 1, 0.5)
    draw = np.random.default_rng(3)
    parent = (12, 8, 3)
    children = {space.mutate(parent, draw) for _ in range(4000)}
    # The first entry within [8, 16], the second within [3, first], the third within [1, second].
    reachable = {(a, b, c) for a in range(8, 17) for b in range(3, a + 1) for c in range(1, b + 1)}
    assert children <= reachable
    assert {child[0] for child in children} == set(range(8, 17))
    assert {child[2] for child in children if child[:2] == parent[:2]} == set(range(1, 9))


def test_crossover_is_the_mean_rounded_up():
    assert Space.cross((16, 9, 4), (11, 8, 4)) == (14, 9, 4)


def test_constant_rates_by_cost():
    """The cheapest constant-rate genome that costs no less: as cheap as any found by trying 20,001 rates."""
    for layers in (2, 6, 12):
        space = Space(layers, 64, 1, 0.3)
        every = {space.constant_rate(rate) for rate in np.linspace(0, 0.3, 20001).tolist()}
        for target in np.linspace(sum(space.smallest), sum(space.full), 17).tolist():
            cheapest = min(sum(genome) for genome in every if sum(genome) >= target)
            assert target <= sum(space.constant_rate_at(sum, target)) <= cheapest
        costs = [sum(genome) for genome in space.spaced(sum, 8)]
        gap = (sum(space.full) - sum(space.smallest)) / 9
        assert np.allclose(costs, sum(space.smallest) + gap * np.arange(1, 9), atol=layers)


def test_a_grid_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="--grid 2 with --drop-bound 0.05 leaves no config"):
        Space(2, 2, 1, 0.05)


def test_frontier_is_what_nothing_beats():
    random = np.random.default_rng(0)
    for count in (1, 2, 30, 30, 30):
        points = [
            Point((i,), "mutation", float(cost), float(accuracy))
            for i, (cost, accuracy) in enumerate(random.integers(0, 8, (count, 2)))
        ]
        pairs = {(point.cost, point.accuracy) for point in points}
        unbeaten = sorted(
            (cost, accuracy)
            for cost, accuracy in pairs
            if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
        )
        best = frontier(points)
        assert [(point.cost, point.accuracy) for point in best] == unbeaten
        for point in best:  # of equal ones the first genome, whatever the order they came in
            twins = [p.genome for p in points if (p.cost, p.accuracy) == (point.cost, point.accuracy)]
            assert point.genome == min(twins)
        assert frontier(points[::-1]) == best


def toy(genome, origin) -> Point:
    """A landscape with one best way: late layers cost as much as early ones and matter less."""
    accuracy = sum(min(step, 16 - 3 * i) * 0.7**i for i, step in enumerate(genome))
    return Point(genome, origin, sum(genome) / 48, accuracy)


def test_nothing_is_measured_twice_and_only_accepted_children_count():
    space, seen, judged = Space(3, 16, 1, 0.5), [], []

    def measure(genome, origin):
        seen.append(genome)
        return toy(genome, origin)

    def accept(genome):
        judged.append(sum(genome) >= 30)
        return judged[-1]

    start = dict.fromkeys([space.full, space.smallest, *space.spaced(sum, 5)], "constant")
    points = evolve(space, start, accept, measure, Plan(4, 6, 3, 0))
    assert [point.genome for point in points] == seen and len(set(seen)) == len(seen)
    born = [point for point in points if point.origin != "constant"]
    assert len(points) - len(born) == len(start)
    assert [point.origin for point in born] == 4 * (6 * ["mutation"] + 3 * ["crossover"])
    assert all(sum(point.genome) >= 30 for point in born) and judged.count(False) > 0


def test_evolution_beats_where_it_began():
    space = Space(3, 16, 1, 0.5)
    start = dict.fromkeys([space.full, space.smallest, *space.spaced(sum, 4)], "constant")
    points = evolve(space, start, lambda genome: True, toy, Plan(12, 8, 8, 0))
    began, ended = frontier(points[: len(start)]), frontier(points)
    assert len(ended) > len(began)
    assert all(any(b.cost <= a.cost and b.accuracy >= a.accuracy for b in ended) for a in began)


def test_more_generations_begin_with_those_of_fewer():
    space = Space(3, 16, 1, 0.5)
    start = {space.full: "constant", space.smallest: "constant"}
    short, long = (evolve(space, start, lambda _: True, toy, Plan(n, 4, 4, 7)) for n in (2, 5))
    assert long[: len(short)] == short


def test_an_exhausted_space_ends_the_search():
    space = Space(2, 3, 1, 0.5)
    start = {space.full: "constant", space.smallest: "constant"}
    points = evolve(space, start, lambda _: True, toy, Plan(30, 10, 10, 0))
    assert sorted(point.genome for point in points) == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
