"""Options of every method: whatever type comes, a typed error names the option, and the engine works on."""

from __future__ import annotations

import inspect
from decimal import Decimal
from fractions import Fraction

import numpy as np
import package_tools
import pytest

from qla_runtime import Engine, InputError, LengthConfig, QlaError

CALLS = {
    "answer": ("span-qa", ("who is it", "it is a b c")),
    "classify": ("sequence-classification", ("a b",)),
    "rank": ("ranker", ("a", ["b", "c d"])),
    "tag": ("token-classification", ("a b",)),
    "encode": ("embedding", ("a b",)),
    "forward": ("embedding", ([[1, 2, 3]],)),
}
SWITCHES = {
    "answer": ("details",),
    "classify": ("truncate",),
    "rank": ("truncate", "raw_scores"),
    "tag": ("truncate",),
    "encode": ("truncate", "normalize_embeddings"),
    "forward": ("output_hidden_states", "output_scores", "output_stages"),
}


class Unspeakable:
    """Whatever a message does with it fails."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __float__(self) -> float:
        raise RuntimeError


class Incomparable(list):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None


STRANGE = [
    10**5000, -(10**300), Fraction(10**400), Decimal("sNaN"), float("nan"), 1j, b"full", "no such name", "\0",
    [], ["full"], {}, {"O"}, slice(0, 1), np.array(1.5), np.array(["full", "fast"]), np.ma.masked,
    np.ma.array([1, 2], mask=[0, 1]), np.datetime64("2020"), object(), int, Unspeakable(), Incomparable(),
]  # fmt: skip


@pytest.fixture(scope="module")
def engines(packages) -> dict[str, Engine]:
    return {task: Engine(path, num_threads=1) for task, path in packages.items()}


def options_of(method: str) -> list[str]:
    parameters = inspect.signature(getattr(Engine, method)).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty]


@pytest.mark.parametrize("method", CALLS)
def test_no_option_lets_an_error_without_a_type_through(engines, method):
    task, inputs = CALLS[method]
    call = getattr(engines[task], method)
    first = call(*inputs)
    for name in options_of(method):
        for value in STRANGE:
            try:
                call(*inputs, **{name: value})
            except QlaError as error:
                assert len(str(error)) < 1500, name
    assert repr(call(*inputs)) == repr(first)


@pytest.mark.parametrize("method, name", [(method, name) for method in SWITCHES for name in SWITCHES[method]])
@pytest.mark.parametrize("value", ["no", 0, None, [], 2.0, np.array([True, False])])
def test_switches_are_true_or_false(engines, method, name, value):
    """``"no"`` is no way to say no: ``if`` takes it for True."""
    task, inputs = CALLS[method]
    with pytest.raises(InputError, match=f"{name} is .*; it must be True or False"):
        getattr(engines[task], method)(*inputs, **{name: value})


def test_numpy_booleans_are_booleans(engines):
    plain = engines["embedding"].encode("a b", normalize_embeddings=True)
    assert np.array_equal(engines["embedding"].encode("a b", normalize_embeddings=np.True_), plain)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), np.datetime64("2020")])
def test_a_numpy_scalar_is_no_batch(engines, value):
    with pytest.raises(InputError, match="input_ids is .*; it must be a list of integer sequences"):
        engines["embedding"].forward(value)


@pytest.mark.parametrize("value", [10**400, Fraction(10**400), Unspeakable()])
def test_vectors_beyond_floats_are_refused(engines, value):
    with pytest.raises(InputError, match="the second argument holds no vectors"):
        engines["embedding"].similarity([1.0], [value])


@pytest.mark.parametrize("threshold", [Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.array(0.5)])
def test_a_null_threshold_is_any_real_number(engines, threshold):
    ask = engines["span-qa"].answer
    want = ask("who is it", "it is a b c", null_threshold=0.5)
    assert ask("who is it", "it is a b c", null_threshold=threshold) == want


@pytest.mark.parametrize("name", ["lengths", "frontier"])
def test_a_closed_engine_shows_no_configs(tmp_path, name):
    engine = Engine(package_tools.tiny_package().save(tmp_path / "package"), num_threads=1)
    assert getattr(engine, name)
    engine.close()
    with pytest.raises(InputError, match="closed"):
        getattr(engine, name)


def test_length_configs_take_no_switch_of_another_type():
    for value in (0, "no", np.array([1, 2])):
        with pytest.raises(InputError, match="keep_cls"):
            LengthConfig.ratio([1.0], keep_cls=value)
