"""Length configs: what is refused on construction, how a call's length is resolved, and what one costs."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import (
    Engine,
    Escalate,
    InputError,
    LatencyBudget,
    LengthConfig,
    MaxLoss,
    NamedLength,
    UnsupportedError,
)
from qla_runtime.lengths.configs import count_macs, resolve

NAMED = {"full": LengthConfig.ratio((1.0, 1.0)), "fast": LengthConfig.ratio((0.5, 0.25))}
MINILM = {"layers": 6, "hidden": 384, "intermediate": 1536, "outputs": 2}


# ---- construction ---------------------------------------------------------------------------------


def test_values_are_plain_numbers_whatever_they_were_given_as():
    assert LengthConfig.ratio(np.array([1.0, 0.5])).values == (1.0, 0.5)
    assert LengthConfig.tokens(np.array([9, 4], np.int64)).values == (9, 4)
    assert LengthConfig.tokens(range(3, 0, -1)).values == (3, 2, 1)


def test_is_a_frozen_value():
    config = LengthConfig.ratio((1.0, 0.5), keep_cls=False)
    assert config == LengthConfig("ratio", (1.0, 0.5), False)
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(
        pickle.loads(pickle.dumps(config))
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.values = (1.0,)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LengthConfig.ratio((1.0, math.nan)), ["entry 1 is nan", "up to 1.0"]),
        (lambda: LengthConfig.ratio((1.2, 1.0)), ["entry 0 is 1.2", "up to 1.0", "LengthConfig.tokens"]),
        (lambda: LengthConfig.ratio((1.0, 0.0)), ["entry 1 is 0.0", "above 0"]),
        (lambda: LengthConfig.ratio((1.0, -0.5)), ["entry 1 is -0.5", "above 0"]),
        (lambda: LengthConfig.ratio((0.5, 0.7)), ["entry 1 is 0.7", "entry 0 (0.5)", "Use 0.5 or less"]),
        (lambda: LengthConfig.ratio(()), ["no entries", "one per layer"]),
        (lambda: LengthConfig.ratio("0.5"), ["'0.5'", "sequence of numbers"]),
        (lambda: LengthConfig.ratio(0.5), ["0.5", "sequence of numbers"]),
        (lambda: LengthConfig.ratio((True,)), ["entry 0 is True"]),
        (lambda: LengthConfig.ratio((None,)), ["entry 0 is None"]),
        (lambda: LengthConfig.tokens((10, 0)), ["entry 1 is 0", "from 1"]),
        (lambda: LengthConfig.tokens((10, -3)), ["entry 1 is -3", "from 1"]),
        (lambda: LengthConfig.tokens((10, 11)), ["entry 1 is 11", "may not rise", "10 or less"]),
        (lambda: LengthConfig.tokens((0.5, 0.25)), ["entry 0 is 0.5", "LengthConfig.ratio"]),
        (lambda: LengthConfig.tokens((math.inf,)), ["entry 0 is inf", "whole number"]),
        (lambda: LengthConfig.tokens((2**40,)), ["whole number"]),
        (lambda: LengthConfig("ratio", (1.0,), keep_cls="yes"), ["keep_cls is 'yes'", "True, False or None"]),
        (lambda: LatencyBudget(-1), ["-1", "0 or more"]),
        (lambda: LatencyBudget(math.nan), ["nan", "finite"]),
        (lambda: LatencyBudget("5"), ["'5'", "finite number"]),
        (lambda: MaxLoss(-0.5), ["-0.5", "0 or more"]),
        (lambda: Escalate("fast", 3), ["dear is 3", "name or a LengthConfig"]),
    ],
)
def test_bad_numbers_are_refused_on_construction(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unknown_rule_is_unsupported_rather_than_wrong():
    with pytest.raises(UnsupportedError, match="'threshold'.*'ratio' or 'tokens'"):
        LengthConfig("threshold", (0.1, 0.1))


# ---- counts and cost ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, length, kept",
    [
        (LengthConfig.ratio((0.7, 0.7, 0.1)), 10, [7, 7, 2]),
        (LengthConfig.ratio((0.56, 0.28)), 25, [14, 7]),  # 0.56 * 25 is a little above 14 in binary
        (LengthConfig.ratio((0.5, 0.01)), 5, [3, 2]),
        (LengthConfig.tokens((8, 4)), 6, [6, 4]),
        (LengthConfig.tokens((8, 1)), 6, [6, 2]),
        (LengthConfig.ratio((0.1,)), 1, [1]),
    ],
)
def test_kept_counts(config, length, kept):
    assert config.kept(length) == kept


@pytest.mark.parametrize(
    "values, macs",
    [
        ((384,) * 6, 4_758_553_344),
        ((269, 253, 252, 202, 104, 34), 2_485_456_896),
        ((315, 251, 242, 159, 142, 33), 2_546_934_912),
    ],
)
def test_macs_are_the_published_ones(values, macs):
    assert count_macs(MINILM, {"kind": "span-qa"}, 384, LengthConfig.tokens(values)) == macs


@pytest.mark.parametrize(
    "task, options",
    [
        ("span-qa", {}),
        ("sequence-classification", {}),
        ("sequence-classification", {"pooler": "none"}),
        ("token-classification", {}),
        ("embedding", {}),
        ("embedding", {"pooling": "cls"}),
    ],
)
@pytest.mark.parametrize("config", [LengthConfig.ratio((0.56, 0.28)), LengthConfig.tokens((11, 2))])
def test_macs_are_what_the_engine_counts(tmp_path, task, options, config):
    engine = Engine(tiny_package(task, **options).save(tmp_path / "package"))
    lengths = (1, 2, 17, 25, 64)  # 0.56 * 25 is a little above 14 in binary
    output = engine.forward([list(range(1, 1 + n)) for n in lengths], length=config)
    assert [[len(kept) for kept in layers] for layers in output.kept] == [config.kept(n) for n in lengths]
    counted = [engine.macs(n, config) for n in lengths]
    assert output.macs.tolist() == counted


@pytest.mark.parametrize("tokens", [0, -1, 2.5, True, None, "3"])
def test_macs_of_what_is_no_number_of_tokens(tmp_path, tokens):
    engine = Engine(tiny_package("embedding").save(tmp_path / "package"))
    with pytest.raises(InputError, match="whole number of at least 1"):
        engine.macs(tokens)


def test_lengths_that_are_spelled_out_are_not_kept(tmp_path):
    """A service may ask for ever new ones."""
    engine = Engine(tiny_package("embedding").save(tmp_path / "package"))
    for i in range(20):
        engine.encode("ada", f"ratio(1, {0.5 + i / 100})")
        engine.encode("ada", None if i % 2 else "fast")
    assert engine._runner._named_plans.keys() == {None, "fast"}


# ---- resolving a call -----------------------------------------------------------------------------


def test_none_is_full():
    plan = resolve(None, None, 3, NAMED, 2)
    assert plan.configs == (NAMED["full"],) and plan.index == (0, 0, 0) and plan.label(2) == "full"


def test_one_entry_per_sequence_shares_equal_configs():
    custom = LengthConfig.tokens((9, 4))
    plan = resolve(["fast", custom, "fast", None], None, 4, NAMED, 2)
    assert plan.configs == (NAMED["fast"], custom, NAMED["full"])
    assert plan.index == (0, 1, 0, 2)
    assert [plan.label(i) for i in range(4)] == ["fast", str(custom), "fast", "full"]


def test_a_named_length_stands_for_its_config():
    entry = NamedLength("fast", NAMED["fast"], macs=1, macs_share=0.5)
    assert resolve(entry, None, 1, NAMED, 2).labels == ("fast",)


def test_a_named_length_of_another_package_is_reported_by_its_config():
    other = LengthConfig.ratio((0.75, 0.5))
    plan = resolve(NamedLength("fast", other, macs=1, macs_share=0.5), None, 1, NAMED, 2)
    assert (plan.configs, plan.labels) == ((other,), (str(other),))


@pytest.mark.parametrize(
    "length, latency_ms, words",
    [
        ("fats", None, ["'fats'", "full, fast", "LengthConfig"]),
        (LengthConfig.ratio((1.0,)), None, ["1 entries", "2 layers", "give 2 entries"]),
        (["fast"], None, ["list of 1", "3 inputs", "one per input"]),
        (["fast", "fast", LatencyBudget(5)], None, ["LatencyBudget", "entry 2", "pass it alone"]),
        (["fast", "fast", "nope"], None, ["'nope'", "entry 2", "full, fast"]),
        (0.5, None, ["0.5", "full, fast", "LengthConfig"]),
        ("fast", 5, ["length='fast'", "latency_ms=5", "one of them"]),
        (None, -5, ["-5", "0 or more"]),
    ],
)
def test_bad_lengths_are_named(length, latency_ms, words):
    with pytest.raises(InputError) as error:
        resolve(length, latency_ms, 3, NAMED, 2)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("policy", [LatencyBudget(5), MaxLoss(1), Escalate("fast", "full")])
def test_policies_are_left_to_the_engine(policy):
    assert resolve(policy, None, 3, NAMED, 2) is policy


def test_latency_ms_is_a_latency_budget():
    assert resolve(None, 5, 3, NAMED, 2) == LatencyBudget(5)
