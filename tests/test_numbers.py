"""Numbers of every type that a caller may pass: taken as what they are worth, or refused by name."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from qla_runtime import Escalate, InputError, LatencyBudget, LengthConfig, MaxLoss
from qla_runtime.errors import shown
from qla_runtime.evaluation.escalation import escalation_threshold
from qla_runtime.real_numbers import as_float

HALVES = [0.5, Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.float64(0.5), np.array(0.5)]
NO_NUMBERS = [
    True,
    np.True_,
    np.array(True),
    None,
    "0.5",
    b"1",
    "1" * 300,
    np.str_("1"),
    1j,
    np.complex64(1 + 1j),
    np.array([0.5]),
    np.array("1"),
    np.ma.masked,
    np.ma.masked_array([1.0], mask=[True])[0],
    np.timedelta64(1, "s"),
    [1],
    {},
    object(),
    float("nan"),
    np.float32("nan"),
    Decimal("nan"),
    Decimal("sNaN"),
]
TOO_LARGE = [10**400, 10**5000, Fraction(10**400), Decimal("1e400"), float("inf"), np.float32("inf")]
NEGATIVE = [-1, -(10**400), Fraction(-1, 2), Decimal("-1e-300"), np.int8(-1)]


def names(values) -> list[str]:
    return [f"{type(value).__name__}-{i}" for i, value in enumerate(values)]


@pytest.mark.parametrize("value", HALVES, ids=names(HALVES))
def test_real_numbers_of_every_type_are_taken(value):
    assert LatencyBudget(value) == LatencyBudget(0.5) and type(LatencyBudget(value).ms) is float
    assert MaxLoss(value) == MaxLoss(0.5) and type(MaxLoss(value).points) is float
    assert Escalate("fast", "full", value) == Escalate("fast", "full", 0.5)
    assert LengthConfig.ratio([1, value]).values == (1.0, 0.5)
    assert escalation_threshold([0.5], [0], [1], value) == 1.0


@pytest.mark.parametrize("value", [3, 3.0, Fraction(6, 2), Decimal(3), np.int64(3), np.float32(3), np.array(3)])
def test_whole_numbers_of_every_type_are_counts(value):
    config = LengthConfig.tokens([value, 2])
    assert config.values == (3, 2) and all(type(count) is int for count in config.values)


def test_a_policy_keeps_an_int():
    assert repr(LatencyBudget(5)) == "LatencyBudget(ms=5)"


def _threshold(value) -> Escalate:
    return Escalate("fast", "full", value)


BAD = NO_NUMBERS + TOO_LARGE + NEGATIVE


@pytest.mark.parametrize("value", BAD, ids=names(BAD))
@pytest.mark.parametrize(
    "use",
    [
        LatencyBudget,
        MaxLoss,
        _threshold,
        lambda value: LengthConfig.ratio([value]),
        lambda value: LengthConfig.tokens([value]),
        lambda value: escalation_threshold([0.5], [0], [1], value),
    ],
    ids=["budget", "loss", "threshold", "ratio", "tokens", "max_loss"],
)
def test_what_is_no_fitting_number_is_refused_by_name(use, value):
    if value is None and use is _threshold:
        return  # None stands for the package's threshold
    with pytest.raises(InputError) as error:
        use(value)
    assert shown(value) in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("value", [2**31, 0.5, Fraction(5, 2), Decimal("0"), 1e300])
def test_a_count_is_a_whole_number_in_range(value):
    with pytest.raises(InputError, match="whole number of tokens, from 1"):
        LengthConfig.tokens([value])


MASKED = np.ma.masked_array([1.0, 0.5], mask=[0, 1])


@pytest.mark.parametrize("values", ["1.0", b"11", 5, None, MASKED, np.ones((2, 2))])
def test_entries_are_a_sequence_of_numbers(values):
    with pytest.raises(InputError, match="entr"):
        LengthConfig.ratio(values)


@pytest.mark.parametrize("tokens", [0, -1, 2.5, True, "9", float("nan"), None])
def test_a_sequence_has_a_whole_number_of_tokens(tokens):
    with pytest.raises(InputError, match="whole number"):
        LengthConfig.ratio([1.0]).kept(tokens)


def test_values_are_shown_on_one_short_line():
    assert shown("a\nb" * 100).count("\n") == 0 and len(shown("a" * 1000)) == 60
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown(Fraction(10**5000)) == "of type Fraction"


def test_numbers_beyond_the_floats_are_infinite():
    assert as_float(-(10**400)) == -math.inf and as_float(Fraction(10**400, 3)) == math.inf
