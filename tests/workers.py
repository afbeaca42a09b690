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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    in_a_worker = hasattr(config, "workerinput")
    if not whole or in_a_worker or not config.pluginmanager.hasplugin("xdist"):
        return
    if config.option.numprocesses is None and not config.option.usepdb and not config.option.collectonly:
        config.option.numprocesses = min(len(os.sched_getaffinity(0)), MOST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Tests of a file stay together: they share models. Those that use CMake stay together, too."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "CMake" if file.removesuffix(".py").split("/")[-1] in USE_CMAKE else file

    return ByFile(config, log)
