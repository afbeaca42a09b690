"""Attacks on packages: how a test spoils one, and what a refusal must look like."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from package_tools import FILES

from qla_runtime import _core
from qla_runtime.errors import PackageError

WEIGHTS = "model.safetensors"
CHECKED_FILES = ("manifest.json", *FILES)


def open_engine(path: Path) -> _core.Engine:
    return _core.Engine(str(path), num_threads=1)


def run(engine: _core.Engine) -> bytes:
    ids = np.arange(3, 11, dtype=np.int32)
    want = {"last_hidden"}
    return engine.run(ids, np.array([0, 5, 8], np.int64), None, [], None, want)["last_hidden"].tobytes()


def refused(path: Path, file: str, rule: str, error=PackageError) -> str:
    """Opening fails with this type, and the message names package, file, rule and remedy."""
    with pytest.raises(error) as caught:
        open_engine(path)
    message = str(caught.value)
    assert type(caught.value) is error
    assert f"package '{path}': {file}: " in message
    assert re.search(rule, message), f"{message}\nlacks: {rule}"
    assert "qla convert" in message
    return message


def put(path: str, value):
    """A change of parsed JSON: the entry at "a.0.b" becomes value; None removes it."""

    def change(parsed):
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            parsed = parsed[step]
        if value is None:
            del parsed[last]
        else:
            parsed[last] = value

    return change
