"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hostile_tools
import pytest
from package_tools import tiny_package

from qla_runtime import _core


@pytest.fixture(scope="session")
def bystander(tmp_path_factory: pytest.TempPathFactory) -> tuple[_core.Engine, bytes]:
    """A good engine, opened before any attack, and its answer then."""
    engine = hostile_tools.open_engine(tiny_package(seed=5).save(tmp_path_factory.mktemp("bystander")))
    return engine, hostile_tools.run(engine)


@pytest.fixture
def victim(tmp_path: Path, bystander: tuple[_core.Engine, bytes]) -> Iterator[Path]:
    """A valid package to spoil; whatever the test does, the bystander must answer as before."""
    path = tiny_package().save(tmp_path / "package")
    yield path
    engine, answer = bystander
    assert hostile_tools.run(engine) == answer
