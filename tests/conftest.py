"""Fixtures that several test files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amx_tools
import cmake_tools
import hostile_tools
import pytest
import raw
from package_tools import tiny_package
from workers import (  # noqa: F401
    pytest_cmdline_main,
    pytest_collection_modifyitems,
    pytest_xdist_make_scheduler,
)

from qla_runtime import Engine, _core

if TYPE_CHECKING:
    from qla_runtime.model.float_model import Model


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl-C works here and in child processes; what a shell runs in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=raw.ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that there are kernels for; a skipped test where the machine lacks it."""
    if request.param not in raw.available_isas():
        pytest.skip(f"{request.param} is not available here (CPU, operating system or QLA_MAX_ISA)")
    return request.param


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where cost models are kept: a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qla_runtime"


@pytest.fixture(scope="session")
def amx_emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that computes AMX instructions, where the CPU has none."""
    return amx_tools.build_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The path of a tiny package of each task, and of a "ranker"."""
    folder = tmp_path_factory.mktemp("packages")
    kinds = ("span-qa", "sequence-classification", "token-classification", "embedding")
    made = {kind: tiny_package(kind) for kind in kinds}
    made["ranker"] = tiny_package("sequence-classification", problem="regression", labels=["relevance"])
    return {kind: str(package.save(folder / kind)) for kind, package in made.items()}


@pytest.fixture(scope="session")
def server(packages: dict[str, str]) -> Iterator[Any]:
    """A running server of five models: "squad" and "minilm" are packaged; "labels", "ranker", "tags" are tiny."""
    pytest.importorskip("uvicorn", reason="needs the extra [serve]")
    import route_tools

    names = {"squad": "minilm-l6-squad", "minilm": "all-minilm-l6-v2"}
    names |= {"labels": packages["sequence-classification"], "ranker": packages["ranker"]}
    names |= {"tags": packages["token-classification"]}
    engines = {name: Engine.from_pretrained(path, num_threads=1) for name, path in names.items()}
    with route_tools.running(engines) as server:
        yield server


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `cmake --install` has put the C++ library."""
    if cmake_tools.SANITIZE:
        pytest.skip("a sanitized library needs a sanitized program around it")
    prefix = tmp_path_factory.mktemp("prefix")
    build = cmake_tools.cpp_build().folder
    cmake_tools.run(cmake_tools.tool("cmake"), "--install", build, "--prefix", prefix)
    return prefix


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


@pytest.fixture(scope="session")
def qa_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT checkpoint for question answering, of random weights. Needs torch."""
    from checkpoint_tools import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("qa") / "tiny-qa", "Bert", "span-qa")


@pytest.fixture(scope="module")
def qa_model(qa_checkpoint: Path) -> Model:
    """Our float module of it."""
    from qla_runtime.checkpoints.reader import open_checkpoint

    return open_checkpoint(qa_checkpoint, max_length=48).load_model()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A pairs file for that checkpoint, with sequences of 5 to 43 tokens."""
    path = tmp_path / "texts.tsv"
    lines = [f"w{5 + i % 9} w6\t" + " ".join(f"w{4 + (i * j) % 90}" for j in range(1 + i % 40)) for i in range(60)]
    path.write_text("\n".join(lines) + "\n")
    return path
