"""The C++ half of the project for tests: configured and built once per session, by CMake."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = os.environ.get("QLA_SANITIZE", "")


@dataclass(frozen=True)
class CppBuild:
    folder: Path
    no_tests: str  # why the GoogleTest binaries were not built; empty when they were


def tool(name: str) -> str:
    """A program of this Python environment, else of the system."""
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output; on failure the test fails with everything the command said."""
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, cwd=cwd)
    if result.returncode:
        line = " ".join(map(str, command))
        pytest.fail(f"{line}: exit status {result.returncode}\n{result.stdout}\n{result.stderr}", pytrace=False)
    return result.stdout


def configure(source: Path, build: Path, *options: str) -> None:
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    run(tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", ninja, *options)


def json_hint() -> list[str]:
    """Where the PyPI package has the JSON headers, as an option of CMake."""
    try:
        files = importlib.metadata.files("nlohmann-json") or []
    except importlib.metadata.PackageNotFoundError:
        return []  # then a system package has to be there
    headers = [Path(file.locate()).resolve() for file in files if file.match("nlohmann/json.hpp")]
    return [f"-DNLOHMANN_JSON_HINT={header.parents[1]}" for header in headers]


@functools.cache
def cpp_build() -> CppBuild:
    """libqla.so and, where GoogleTest is installed, the binaries of tests/cpp; kept for the next session."""
    tool("g++")
    folder = ROOT / "build" / "-".join(["cpp-tests", *filter(None, SANITIZE.split(","))])
    options = [f"-DQLA_SANITIZE={SANITIZE}", *json_hint()]
    no_tests = ""
    try:
        configure(ROOT, folder, "-DQLA_BUILD_TESTS=ON", *options)
    except pytest.fail.Exception as error:
        if "GTest" not in str(error):
            raise
        no_tests = "GoogleTest is not installed (Debian: libgtest-dev)"
        configure(ROOT, folder, "-DQLA_BUILD_TESTS=OFF", *options)
    run(tool("cmake"), "--build", folder)
    return CppBuild(folder, no_tests)
