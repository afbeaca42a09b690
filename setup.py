"""Builds libqla.so and the Python module `_core` by CMake; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_GCC = 11
SYSTEM_INCLUDES = ("/usr/local/include", "/usr/include")
FOR_CPP = ("libqla.so", "include", "cmake")
"""What CMake installs beside `_core`: the library that it loads, and what C++ programs build with."""


def check_machine() -> None:
    """Ends the build with one sentence where it could not succeed."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) not in (("Linux", "x86_64"), ("Linux", "AMD64")):
        sys.exit(f"qla_runtime runs on Linux on x86-64; this is {system} on {machine}, which it does not support.")
    compiler = os.environ.get("CXX") or "g++"
    program = shutil.which(compiler.split()[0])
    if not program and not os.environ.get("CXX"):
        program = shutil.which("c++") or shutil.which("clang++")
    if not program:
        sys.exit(
            f"qla_runtime is compiled on this machine, and its C++ compiler {compiler!r} was not found: install "
            f"g++ {OLDEST_GCC} or later (Debian: apt install g++), or name one by the variable CXX."
        )
    version = gcc_version(program)
    if version is not None and version < OLDEST_GCC:
        sys.exit(
            f"qla_runtime needs g++ {OLDEST_GCC} or later; {program} is version {version}: install a newer one "
            "and name it by the variable CXX."
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        sys.exit(
            f"qla_runtime's Python module needs Python's C headers, and '{header}' is missing: install them "
            "(Debian: apt install python3-dev)."
        )


def gcc_version(program: str) -> int | None:
    """The major version, or None where it is no GCC: CMake says then what it lacks."""
    text = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    if "clang" in text:
        return None
    said = subprocess.run([program, "-dumpversion"], capture_output=True, text=True).stdout
    number = re.match(r"\d+", said)
    return int(number[0]) if number else None


def nlohmann_json_include() -> str:
    """The include directory of the PyPI package `nlohmann-json`, a build requirement; else the system's."""
    try:
        files = importlib.metadata.files("nlohmann-json") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.match("nlohmann/json.hpp"):
            return str(Path(file.locate()).resolve().parents[1])
    for folder in SYSTEM_INCLUDES:
        if Path(folder, "nlohmann/json.hpp").is_file():
            return folder
    sys.exit(
        "qla_runtime needs nlohmann's JSON headers to build, and nlohmann/json.hpp was not found: run "
        "`pip install nlohmann-json`, or install the system's (Debian: apt install nlohmann-json3-dev)."
    )


class FreshBuildPy(build_py):
    """`pip install .` keeps its build folder in the checkout: modules that are gone must not stay in it."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "qla_runtime"), ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """One CMake project gives both shared libraries; they lie side by side in the package."""

    def build_extension(self, ext: Extension) -> None:
        check_machine()
        import pybind11

        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # pip's own build environment is gone after each build, and with it the ninja, pybind11 and JSON
        # headers that CMake has noted. Object files stay.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DQLA_BUILD_PYTHON=ON",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('QLA_BUILD_TYPE', 'Release')}",
            f"-DQLA_SANITIZE={os.environ.get('QLA_SANITIZE', '')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DNLOHMANN_JSON_HINT={nlohmann_json_include()}",
            f"-DCMAKE_INSTALL_PREFIX={package.parent}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build)], check=True)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: what CMake installs beside `_core` moves with it."""
        super().copy_extensions_to_source()
        for name in FOR_CPP:
            built, target = Path(self.build_lib, "qla_runtime", name), ROOT / "qla_runtime" / name
            if built.is_dir():
                shutil.copytree(built, target, dirs_exist_ok=True)
                continue
            # Renamed into place: overwriting would pull the code from under processes that have it mapped.
            fresh = target.with_suffix(".new")
            shutil.copy2(built, fresh)
            os.replace(fresh, target)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("qla_runtime._core", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuildPy},
    )
