"""Builds libqla.so and the Python module `_core` by CMake; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def nlohmann_json_include() -> str:
    """The include directory of the PyPI package `nlohmann-json`, a build requirement."""
    for file in importlib.metadata.files("nlohmann-json") or []:
        if file.match("nlohmann/json.hpp"):
            return str(Path(file.locate()).resolve().parents[1])
    raise RuntimeError("the build requirement nlohmann-json brings no nlohmann/json.hpp")


class CMakeBuild(build_ext):
    """One CMake project gives both shared libraries; they lie side by side in the package."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
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
        """In-place and editable builds: `_core` finds libqla.so beside itself, so both must move."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "qla_runtime", "libqla.so")
        target = ROOT / "qla_runtime" / built.name
        # Renamed into place: overwriting would pull the code from under processes that have it mapped.
        fresh = target.with_suffix(".new")
        shutil.copy2(built, fresh)
        os.replace(fresh, target)


setup(
    ext_modules=[Extension("qla_runtime._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
