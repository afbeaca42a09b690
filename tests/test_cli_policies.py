"""Policies on the command line."""

from __future__ import annotations

import json

import pytest
from package_tools import tiny_package
from policy_tools import measured

from qla_runtime import cli


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> str:
    package = measured(tiny_package(), full=80, balanced=79.5, fast=70)
    return str(package.save(tmp_path_factory.mktemp("policies") / "package"))


def qla(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    try:
        status = cli.main(arguments)
    except SystemExit as leaving:  # argparse leaves by itself
        status = leaving.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    "option, length, met",
    [
        (["--latency-ms", "60000"], "full", True),
        (["--latency-ms", "0"], "fast", False),
        (["--max-loss", "0.5"], "balanced", None),
        (["--escalate", "fast:balanced:1"], "balanced", None),
        (["--escalate", ".5,.5:9,4:0"], "ratio(0.5, 0.5)", None),
    ],
)
def test_the_command_line_has_policies(capsys, package, option, length, met):
    arguments = ["answer", "who?", "--context", "ada, bob.", "--model", package, *option]
    status, output, errors = qla(capsys, *arguments, "--json")
    result = json.loads(output)
    assert (status, errors, result["length"], result["budget_met"]) == (0, "", length, met)
    shown = qla(capsys, *arguments)[1]
    assert ("within the budget" in shown, "over the budget" in shown) == (met is True, met is False)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--latency-ms", "5", "--length", "fast"], ["--latency-ms", "--length", "not allowed"]),
        (["--latency-ms", "5", "--max-loss", "1"], ["not allowed"]),
        (["--escalate", "fast:full", "--length", "fast"], ["not allowed"]),
        (["--latency-ms", "soon"], ["'soon'"]),
        (["--latency-ms", "-5"], ["-5", "0 or more"]),
        (["--latency-ms", "nan"], ["nan", "finite"]),
        (["--max-loss", "-1"], ["-1", "0 or more"]),
        (["--escalate", "fast"], ["'fast'", "CHEAP:DEAR"]),
        (["--escalate", "fast:"], ["'fast:'", "CHEAP:DEAR"]),
        (["--escalate", "fast:full:much"], ["'fast:full:much'", "threshold"]),
        (["--escalate", "fast:full:2"], ["threshold", "2.0"]),
        (["--escalate", "fast:full:1:1"], ["'fast:full:1:1'"]),
        (["--escalate", "fast:best"], ["'best'", "full, balanced, fast"]),
    ],
)
def test_the_command_line_refuses(capsys, package, options, words):
    status, output, errors = qla(capsys, "answer", "a", "--context", "b", "--model", package, *options)
    assert (status, output) == (2, "") and len(errors.splitlines()) == 1
    assert all(word in errors for word in words), errors
