"""Named length configs and latency budgets in C and C++: the ones that Python sees, and what is refused."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path

import cmake_tools
import pytest
from package_tools import TinyPackage, tiny_package

import qla_runtime
from qla_runtime import Engine


@pytest.fixture(scope="module")
def program(prefix: Path, tmp_path_factory) -> Path:
    build = tmp_path_factory.mktemp("budget")
    cmake_tools.configure(cmake_tools.ROOT / "examples" / "cpp", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    cmake_tools.run(cmake_tools.tool("cmake"), "--build", build, "--target", "latency_budget")
    return build / "latency_budget"


def measured(**fast: str | float) -> TinyPackage:
    """A package with accuracies; ``fast`` is that of the config ``fast``, none where it is empty."""
    package = tiny_package(layers=3)
    entries = {entry.get("name", "frontier"): entry for entry in package.length_configs["configs"]}
    (entries["frontier"],) = package.length_configs["frontier"]
    for name, value in (("full", 80), ("balanced", 80.5), ("frontier", 70)):
        entries[name]["accuracy"] = {"metric": "f1", "value": value, "data": "some"}
    entries["fast"].pop("accuracy", None)
    if fast:
        entries["fast"]["accuracy"] = fast
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """Three configs measured on the same data; ``fast`` is not, and so no budget chooses it."""
    return measured().save(tmp_path_factory.mktemp("lengths") / "package")


def test_the_example_sees_pythons_configs(program, package):
    engine = Engine(package)
    pattern = r"(.+): (\d+) MACs, (\S+) of full(?:, (\S+) (\S+) on (.+))?\n"
    found = re.findall(pattern, cmake_tools.run(program, package, "1000", "1"))
    expected = {**engine.lengths, **engine.frontier}
    assert [row[0] for row in found] == list(expected) == ["full", "balanced", "fast", "frontier-1"]
    for (_, macs, share, metric, value, data), entry in zip(found, expected.values(), strict=True):
        assert int(macs) == entry.macs and float(share) == entry.macs_share
        measured = entry.accuracy and (entry.accuracy.metric, entry.accuracy.value, entry.accuracy.data)
        assert measured == ((metric, float(value), data) if metric else None)


@pytest.mark.parametrize(
    "milliseconds, chosen, met", [("60000", "balanced", "within"), ("0", "frontier-1", "over")]
)
def test_a_budget_runs_the_best_that_fits_or_the_fastest(program, package, milliseconds, chosen, met):
    found = re.findall(
        r"ran (.+): expected .+, took .+, (\w+) the budget", cmake_tools.run(program, package, milliseconds)
    )
    assert len(found) == 3 and set(found) == {(chosen, met)}


# ---- the C door -----------------------------------------------------------------------------------


class Length(ctypes.Structure):
    _fields_ = [
        ("rule", ctypes.c_int32),
        ("keep_cls", ctypes.c_int32),
        ("values", ctypes.POINTER(ctypes.c_double)),
        ("num_values", ctypes.c_int32),
    ]


class Info(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("length", Length),
        ("in_frontier", ctypes.c_int32),
        ("macs", ctypes.c_int64),
        ("macs_share", ctypes.c_double),
        ("metric", ctypes.c_char_p),
        ("accuracy", ctypes.c_double),
        ("data", ctypes.c_char_p),
    ]


class Door:
    """An engine opened through the C door."""

    def __init__(self, package: Path) -> None:
        self._library = ctypes.CDLL(str(Path(qla_runtime.__file__).with_name("libqla.so")))
        self._library.qla_last_error.restype = ctypes.c_char_p
        self._engine = ctypes.c_void_p()
        assert self._library.qla_open(str(package).encode(), None, ctypes.byref(self._engine)) == 0

    def call(self, function: str, *arguments) -> str:
        """The error, empty where there is none."""
        status = getattr(self._library, function)(self._engine, *arguments)
        assert status in (0, 1)
        return self._library.qla_last_error().decode() if status else ""

    def close(self) -> None:
        self._library.qla_free(self._engine)


@pytest.fixture
def door(package):
    door = Door(package)
    yield door
    door.close()


def info(size: int = ctypes.sizeof(Info)):
    return ctypes.byref(Info(struct_size=size))


def offsets(*values: int):
    return (ctypes.c_int64 * len(values))(*values)


def chosen_for(door: Door, milliseconds: float) -> tuple[str, float]:
    """The config for one sequence of 40 tokens, and the milliseconds that it is expected to take."""
    found, expected = Info(struct_size=ctypes.sizeof(Info)), ctypes.c_double()
    arguments = offsets(0, 40), ctypes.c_int64(1), ctypes.c_double(milliseconds)
    assert not door.call("qla_choose_config", *arguments, ctypes.byref(found), ctypes.byref(expected))
    return found.name.decode(), expected.value


def choose(door: Door, starts, count: int, milliseconds: float, into=None) -> str:
    expected = ctypes.c_double()
    arguments = starts, ctypes.c_int64(count), ctypes.c_double(milliseconds)
    return door.call("qla_choose_config", *arguments, into or info(), ctypes.byref(expected))


def test_configs_by_number_and_by_name_are_the_same(door, package):
    count = ctypes.c_int32()
    assert not door.call("qla_config_count", ctypes.byref(count)) and count.value == 4
    engine = Engine(package)
    for i, entry in enumerate({**engine.lengths, **engine.frontier}.values()):
        numbered, named = Info(struct_size=ctypes.sizeof(Info)), Info(struct_size=ctypes.sizeof(Info))
        assert not door.call("qla_get_config", i, ctypes.byref(numbered))
        assert not door.call("qla_find_config", entry.name.encode(), ctypes.byref(named))
        for found in (numbered, named):
            assert found.name.decode() == entry.name and found.in_frontier == (entry.name in engine.frontier)
            values = tuple(found.length.values[: found.length.num_values])
            assert (found.length.rule, values, found.length.keep_cls) == entry.config.to_native()


def test_a_name_that_is_taken_is_not_given_again(tmp_path):
    """The first of the frontier has no name of its own, and a config is called as it would be."""
    package = tiny_package()
    package.length_configs["configs"][-1]["name"] = "frontier-1"
    path = package.save(tmp_path / "package")
    door, engine, found = Door(path), Engine(path), Info(struct_size=ctypes.sizeof(Info))
    names = [*engine.lengths, *engine.frontier]
    assert names == ["full", "balanced", "frontier-1", "frontier-1'"]
    for i, name in enumerate(names):
        assert not door.call("qla_get_config", i, ctypes.byref(found)) and found.name.decode() == name
    door.close()


def test_bad_questions_are_refused_and_the_door_stays_open(door):
    for size in (0, 9, ctypes.sizeof(Info) - 1, ctypes.sizeof(Info) + 8, 2**63):
        assert "struct_size" in door.call("qla_get_config", 0, info(size))
    assert "there is no config -1" in door.call("qla_get_config", -1, info())
    assert "there is no config 4" in door.call("qla_get_config", 4, info())
    assert "no config 'best'; it has full, balanced, fast, frontier-1" in door.call(
        "qla_find_config", b"best", info()
    )
    for function, arguments in (
        ("qla_config_count", [None]),
        ("qla_get_config", [0, None]),
        ("qla_find_config", [None, info()]),
        ("qla_find_config", [b"full", None]),
    ):
        assert "is NULL" in door.call(function, *arguments)
    assert not door.call("qla_find_config", b"full", info())


def test_bad_budgets_are_refused(door):
    assert "qla_fit_costs" in choose(door, offsets(0, 5), 1, 5.0), "before the fit"
    assert not door.call("qla_fit_costs") and not choose(door, offsets(0, 5), 1, 5.0)
    for milliseconds in (-1.0, math.nan, math.inf):
        assert "milliseconds" in choose(door, offsets(0, 5), 1, milliseconds)
    for starts in (offsets(0, 0), offsets(5, 4), offsets(-5, 5), offsets(0, 10**6), offsets(0, 2**63 - 1)):
        assert "do not hold 1 to" in choose(door, starts, 1, 5.0)
    for count in (0, -1, -(2**63)):
        assert "num_sequences" in choose(door, offsets(0, 5), count, 5.0)
    assert "offsets is NULL" in choose(door, None, 1, 5.0)
    for expected, took in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)):
        assert "milliseconds" in door.call("qla_saw_call", ctypes.c_double(expected), ctypes.c_double(took))


@pytest.mark.parametrize(
    "metric, data, best", [("f1", "some", "fast"), ("f1", "other", "balanced"), ("em", "some", "balanced")]
)
def test_accuracies_are_compared_where_they_were_measured_alike(tmp_path, metric, data, best):
    path = measured(metric=metric, value=99.0, data=data).save(tmp_path / "package")
    door = Door(path)
    assert not door.call("qla_fit_costs")
    assert chosen_for(door, 60_000.0)[0] == best
    door.close()


def test_a_config_is_chosen_where_its_time_and_a_margin_fit(door):
    assert not door.call("qla_fit_costs")
    best, expected = chosen_for(door, 5_000.0)
    assert best == "balanced" and 0 < expected < 5_000
    assert chosen_for(door, 1.09 * expected)[0] != best, "predictions are raised by a tenth at least"
    assert chosen_for(door, 1.51 * expected)[0] == best, "and by a half at most"


def test_what_calls_take_is_followed(door):
    """A machine that turns out hundreds of times as slow as it was when it was measured."""
    assert not door.call("qla_fit_costs")
    best, expected = chosen_for(door, 5_000.0)
    for _ in range(200):
        assert not door.call("qla_saw_call", ctypes.c_double(expected), ctypes.c_double(1e7))
    assert chosen_for(door, 5_000.0)[0] != best
    for _ in range(400):
        assert not door.call("qla_saw_call", ctypes.c_double(expected), ctypes.c_double(expected))
    assert chosen_for(door, 5_000.0)[0] == best
    for _ in range(200):
        assert not door.call("qla_saw_call", ctypes.c_double(expected), ctypes.c_double(1e7))
    assert not door.call("qla_fit_costs")
    assert chosen_for(door, 5_000.0)[0] == best, "a new fit forgets what calls told"
