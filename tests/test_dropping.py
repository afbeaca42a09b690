"""Length semantics, exactly: which tokens stay, what the dropped ones carry, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import _core

LENGTHS = [64, 40, 17, 3, 2, 1]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    package = package_tools.tiny_package(hidden=128, heads=4, layers=4)
    return _core.Engine(str(package.save(tmp_path_factory.mktemp("package"))), num_threads=2)


@pytest.fixture(scope="module")
def batch(engine):
    return raw.random_batch(LENGTHS, engine.info["vocab_size"], 2)


def expected_count(rule: int, value: float, n0: int, current: int) -> int:
    wanted = math.ceil(value * n0 - 1e-6) if rule == raw.RATIO else int(value)
    return min(current, max(2, wanted))


CONFIGS = {
    "ratios": (raw.RATIO, [0.9, 0.5, 0.5, 0.1]),
    "exact ratios": (raw.RATIO, [0.75, 0.5, 0.25, 0.25]),
    "counts": (raw.TOKENS, [50, 20, 20, 4]),
    "full": (raw.RATIO, [1.0, 1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("keep_cls", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_kept_sets_are_the_top_k_of_the_engines_own_scores(engine, batch, name: str, keep_cls: int) -> None:
    rule, values = CONFIGS[name]
    result = raw.run(engine, batch, [(rule, values, keep_cls)])
    for s, n0 in enumerate(LENGTHS):
        first = batch[1][s]
        current = list(range(n0))
        for layer, value in enumerate(values):
            scores = result["scores"][layer, first : first + n0]
            assert [j for j in range(n0) if not np.isnan(scores[j])] == current
            k = expected_count(rule, value, n0, len(current))
            assert result["kept_counts"][layer, s] == k
            ranked = sorted(current, key=lambda j: (not (keep_cls and j == 0), -scores[j], j))
            current = sorted(ranked[:k])
            kept = result["kept"][layer, first : first + n0]
            assert kept[:k].tolist() == current
            assert (kept[k:] == -1).all()


def test_scores_sum_to_heads_times_tokens(engine, batch) -> None:
    """Every query row of every head hands out a probability of one."""
    scores = raw.run(engine, batch, want={"scores"})["scores"]
    heads = engine.info["heads"]
    for s, n0 in enumerate(LENGTHS):
        sums = scores[:, batch[1][s] : batch[1][s + 1]].sum(axis=1, dtype=np.float64)
        # fp32 sums of heads * n0 numbers at most 1, each off by at most a few units of 2^-24.
        assert np.abs(sums - heads * n0).max() <= heads * n0 * (heads + n0) * 2.0**-22


def test_a_dropped_token_rests_in_its_previous_layers_output(engine, batch) -> None:
    values = [0.9, 0.5, 0.5, 0.1]
    result = raw.run(engine, batch, [(raw.RATIO, values, 1)])
    states, last = result["hidden_states"], result["last_hidden"]
    for s, n0 in enumerate(LENGTHS):
        first = batch[1][s]
        alive = set(range(n0))
        for layer in range(len(values)):
            kept = set(result["kept"][layer, first : first + result["kept_counts"][layer, s]].tolist())
            for token in alive - kept:
                resting = states[layer, first + token].tobytes()
                assert last[first + token].tobytes() == resting
                assert states[layer + 1, first + token].tobytes() == resting
            for token in kept:
                assert states[layer + 1, first + token].tobytes() != states[layer, first + token].tobytes()
            alive = kept
    assert states[-1].tobytes() == last.tobytes()


def test_full_config_equals_no_config(engine, batch) -> None:
    full = raw.run(engine, batch, [(raw.RATIO, np.ones(4), -1)])
    none = raw.run(engine, batch)
    for name in full:
        assert full[name].tobytes() == none[name].tobytes()


def test_macs_of_the_published_configs(tmp_path) -> None:
    """QuaLA-MiniLM's table at 384 tokens, to the unit (arXiv 2210.17114)."""
    package = package_tools.tiny_package(
        hidden=384, heads=12, layers=6, intermediate=1536, max_positions=384, vocab_size=32
    )
    engine = _core.Engine(str(package.save(tmp_path)))
    published = {
        (384,) * 6: 4_758_553_344,
        (269, 253, 252, 202, 104, 34): 2_485_456_896,
        (315, 251, 242, 159, 142, 33): 2_546_934_912,
    }
    batch = raw.random_batch([384] * len(published), 32)
    lengths = [(raw.TOKENS, np.array(k, float), 1) for k in published]
    macs = raw.run(engine, batch, lengths, range(len(published)), {"macs"})["macs"]
    assert macs.tolist() == list(published.values())
