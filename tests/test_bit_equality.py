"""Promise 3 of docs/architecture.md: same sequence and length config in, same bits out, whatever the batch,
the number of threads, or the instruction set.

AMX code runs on the real thing where the CPU has it; elsewhere the same object code runs under the emulator in
tests/emulator, which traps AMX instructions and computes them by the rule in docs/numerics.md.
"""

from __future__ import annotations

from pathlib import Path

import amx_tools
import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import _core

SHAPES = [
    dict(task="span-qa", hidden=128, heads=4, layers=3, intermediate=256),
    dict(task="embedding", family="roberta", hidden=128, heads=2, layers=2, intermediate=192),
    dict(task="sequence-classification", hidden=64, heads=1, layers=2, activation="static"),
    dict(task="token-classification", hidden=192, heads=6, layers=2, intermediate=320),
]
LENGTHS = [1, 2, 3, 15, 16, 17, 33, 64, 5, 48]


def configs(layers: int) -> list[tuple]:
    """Full, a ratio config that drops everywhere, and absolute counts that hit some sequences only."""
    ratios = np.linspace(0.8, 0.2, layers)
    return [
        (raw.RATIO, np.ones(layers), -1),
        (raw.RATIO, ratios, 1),
        (raw.TOKENS, np.linspace(20, 6, layers).round(), 0),
    ]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape['task']}-{shape['hidden']}")
def case(request, tmp_path_factory):
    package = package_tools.tiny_package(**request.param)
    path = package.save(tmp_path_factory.mktemp("package"))
    types = package.config["encoder"]["type_vocab_size"]
    batch = raw.random_batch(LENGTHS, package.config["encoder"]["vocab_size"], types)
    lengths = configs(package.config["encoder"]["layers"])
    index = [i % len(lengths) for i in range(len(LENGTHS))]
    return str(path), batch, lengths, index


def test_every_isa_gives_the_same_bits(case, isa: str) -> None:
    path, batch, lengths, index = case
    want = raw.run(_core.Engine(path, isa="ref"), batch, lengths, index)
    engine = _core.Engine(path, isa=isa)
    assert f"{isa} " in next(line for line in engine.explain().splitlines() if line.endswith("<- chosen"))
    got = raw.run(engine, batch, lengths, index)
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_thread_count_changes_nothing(case, threads: int) -> None:
    path, batch, lengths, index = case
    want = raw.run(_core.Engine(path, num_threads=1), batch, lengths, index)
    engine = _core.Engine(path, num_threads=threads)
    for _ in range(5):  # work is handed out dynamically: give races a chance
        got = raw.run(engine, batch, lengths, index)
        for name in want:
            assert got[name].tobytes() == want[name].tobytes(), name


def test_a_sequence_alone_equals_itself_in_any_batch(case) -> None:
    path, batch, lengths, index = case
    engine = _core.Engine(path, num_threads=2)
    together = raw.run(engine, batch, lengths, index)
    backwards = list(range(len(LENGTHS)))[::-1]
    reordered = raw.select(batch, backwards)
    shuffled = raw.run(engine, reordered, lengths, [index[s] for s in backwards])
    for s in range(len(LENGTHS)):
        single = raw.select(batch, [s])
        alone = raw.rows_of(raw.run(engine, single, [lengths[index[s]]]), single, 0)
        assert raw.rows_of(together, batch, s) == alone
        assert raw.rows_of(shuffled, reordered, backwards.index(s)) == alone


def test_asking_for_more_results_changes_none(case) -> None:
    path, batch, lengths, index = case
    engine = _core.Engine(path, num_threads=2)
    everything = raw.run(engine, batch, lengths, index)
    for name in ("last_hidden", "logits", "kept", "hidden_states", "scores", "macs"):
        got = raw.run(engine, batch, lengths, index, {name})
        assert got[name].tobytes() == everything[name].tobytes()


def test_calls_over_the_chunk_size_equal_small_ones(case) -> None:
    path, batch, lengths, index = case
    engine = _core.Engine(path, num_threads=2)
    repeats = 60  # 60 * 204 tokens: several chunks
    order = list(range(len(LENGTHS))) * repeats
    big = raw.select(batch, order)
    got = raw.run(engine, big, lengths, [index[s] for s in order])
    small = raw.run(engine, batch, lengths, index)
    for position in (0, 7, len(order) // 2, len(order) - 1):
        assert raw.rows_of(got, big, position) == raw.rows_of(small, batch, order[position])


def test_emulated_amx_gives_the_same_bits(case, amx_emulator: Path, tmp_path: Path) -> None:
    path, batch, lengths, index = case
    want = raw.run(_core.Engine(path, isa="ref"), batch, lengths, index)
    got = amx_tools.run(amx_emulator, path, batch, index, tmp_path)
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name
