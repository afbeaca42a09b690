"""Settings classes as command lines and back, and their limits; ``qla train`` and ``qla search`` stand on them."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from qla_runtime.errors import InputError
from qla_runtime.search.options import SearchOptions
from qla_runtime.settings import (
    add_arguments,
    between,
    check_limits,
    from_arguments,
    one_of,
    points,
    setting,
    share,
)
from qla_runtime.settings import whole as whole_number
from qla_runtime.training.options import LoopOptions
from qla_runtime.training.recipes import RECIPES


def _halves(flag: str, text: str) -> tuple[float, ...]:
    if text == "none":
        raise InputError(f"{flag} holds nothing")
    return tuple(float(part) / 2 for part in text.split("/"))


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    count: int = setting(3, "(default: %(default)s)", limit=between(1, 9), metavar="N")
    rate: float | None = setting(None, "a rate", limit=between(0.0, 1.0), flag="--its-rate")
    loud: bool = setting(False, "say more")
    way: str = setting("up", "where to", choices=("up", "down"), limit=one_of(("up", "down")))
    parts: tuple[int, ...] = setting((), "several", read=int, repeatable=True)
    halves: tuple[float, ...] | None = setting(None, "halved", convert=_halves)

    def __post_init__(self) -> None:
        check_limits(self)


def parse(*arguments: str, names: tuple[str, ...] = (), settings: type = Options):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, settings, *names)
    return parser.parse_args(arguments)


def test_nothing_given_is_the_defaults():
    assert from_arguments(Options, parse()) == Options()


def test_every_kind_is_read():
    given = ["--count", "4", "--its-rate", ".5", "--loud", "--way", "down", "--parts", "1", "--parts", "2"]
    found = from_arguments(Options, parse(*given, "--halves", "1/3"))
    assert found == Options(4, 0.5, True, "down", (1, 2), (0.5, 1.5))
    assert type(found.count) is int and type(found.rate) is float


def test_only_the_names_asked_for_are_added_in_their_order():
    assert list(vars(parse(names=("way", "count")))) == ["way", "count"]


@pytest.mark.parametrize("given", [["--count", "1.5"], ["--way", "left"], ["--parts", "x"], ["--its-rate", "x"]])
def test_what_cannot_be_read_is_argparses_error(given):
    with pytest.raises(argparse.ArgumentError):
        parse(*given)


def test_errors_of_a_conversion_are_its_own():
    with pytest.raises(InputError, match="^--halves holds nothing$"):
        from_arguments(Options, parse("--halves", "none"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count is 0; it must be between 1 and 9"),
        ({"count": None}, "count is None; it must be between 1 and 9"),
        ({"count": "4"}, "count is '4'; it must be between 1 and 9"),
        ({"rate": math.nan}, "rate is nan; it must be between 0 and 1"),
        ({"way": "left"}, "way is 'left'; it must be one of up, down"),
    ],
)
def test_limits_are_told_in_words(wrong, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        Options(**wrong)


def test_limits_in_flags():
    wrong = Options()
    object.__setattr__(wrong, "rate", 2.0)
    with pytest.raises(InputError, match="^--its-rate is 2.0; it must be between 0 and 1$"):
        check_limits(wrong, in_flags=True)


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        (between(1, 2), [1, 2, 1.5], [0.99, 2.01, math.nan, True, "1"]),
        (whole_number(1, 3), [1, 3], [0, 4, 1.0, True, "1"]),
        (share(), [0.1, 0.99], [0, 1, math.nan, True]),
        (points(), [0, 2.5], [-0.1, math.inf, math.nan, False]),
        (one_of(("a", "b")), ["a", "b"], ["", "c", None]),
    ],
)
def test_what_limits_allow(limit, good, bad):
    assert all(limit.fits(value) for value in good) and not any(limit.fits(value) for value in bad)


@pytest.mark.parametrize("settings", [SearchOptions, LoopOptions, *RECIPES.values()])
def test_the_command_lines_defaults_are_the_librarys(settings):
    duration = ["--steps", "7"] if settings is LoopOptions else []
    found = from_arguments(settings, parse(*duration, settings=settings))
    assert found == (settings(steps=7) if duration else settings())
    assert {field.name for field in fields(settings)} == set(vars(parse(*duration, settings=settings)))


def test_the_recipes_settings_need_no_torch():
    """The command line is made of them, and torch takes seconds, where it is installed at all."""
    program = "import sys; from qla_runtime.training import command, recipes; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
