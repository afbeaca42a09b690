"""The whole suite runs in one process per core, by pytest-xdist; named files and ``-n 0`` run in this one."""

from __future__ import annotations

import os

import pytest

MOST = 4
"""Each process holds its own torch and models, about 1 GB."""
USE_CMAKE = (
    "test_cpp",
    "test_cpp_embedding",
    "test_cpp_lengths",
    "test_install",
    "test_json_agrees",
    "test_symbols",
)
"""These share build/cpp-tests, so that one process builds it and no other waits for it."""
TRAIN = ("test_training", "test_qat", "test_minilm", "test_length_drop")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    option = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    if option.numprocesses is None and not option.usepdb and not option.collectonly:
        cores = len(os.sched_getaffinity(0))
        option.numprocesses = min(cores, MOST)
        option.loadscopereorder = False  # the order below instead of "most tests first"
        # For torch: threads that wait for each other spin, on cores that another process needs.
        os.environ.setdefault("MKL_NUM_THREADS", str(cores // option.numprocesses))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files start first, so that no process waits for another at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.stem not in USE_CMAKE + TRAIN)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Tests of a file stay together: they share models. Those that use CMake stay together, too."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "CMake" if file.removesuffix(".py").split("/")[-1] in USE_CMAKE else file

    return ByFile(config, log)
