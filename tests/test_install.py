"""Installing, and what an installation gives: Python in a checkout's own folder, C++ programs, plain refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cmake_tools
import package_tools
import pytest
from test_imports import NEED_AN_EXTRA

import qla_runtime
from qla_runtime import _core
from qla_runtime.cli import program as cli

ROOT = cmake_tools.ROOT
PACKAGE = Path(qla_runtime.__file__).parent


def python(folder: Path, code: str, *paths: Path) -> subprocess.CompletedProcess:
    """``python -c CODE`` in a folder, which thereby is the first place that Python imports from."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    # As in an environment where this checkout is not installed in place: that puts a finder and its folder there.
    alone = f"""import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
"""
    command = [sys.executable, "-c", alone + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_one_version_everywhere():
    """qla.h has it; the rest reads it there, when it is built or installed."""
    macros = r"VERSION_MAJOR (\d+)\n#define QLA_VERSION_MINOR (\d+)\n#define QLA_VERSION_PATCH (\d+)\n"
    header = (ROOT / "csrc/include/qla/qla.h").read_text(encoding="utf-8")
    config = Path(qla_runtime.cmake_dir(), "qlaConfigVersion.cmake").read_text(encoding="utf-8")
    versions = {
        "qla.h": ".".join(re.search(macros, header).groups()),
        "_core": _core.version(),
        "CMake's config": re.search(r'PACKAGE_VERSION "(.*)"', config)[1],
        "qla_runtime": qla_runtime.__version__,
    }
    assert len(set(versions.values())) == 1, versions
    for file in ("pyproject.toml", "CMakeLists.txt", "setup.py"):
        assert versions["qla.h"] not in (ROOT / file).read_text(encoding="utf-8"), f"{file} repeats it"


# ---- a checkout that was not built in place --------------------------------------------------------


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The package's Python files alone, as `git clone` gives them."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "include", "cmake", "models")
    shutil.copytree(ROOT / "qla_runtime", folder / "qla_runtime", ignore=ignored)
    return folder


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder that has the built package, as site-packages has it after `pip install .`."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "qla_runtime").symlink_to(PACKAGE)
    return folder


def test_python_in_a_checkout_takes_everything_from_the_installed_package(checkout, site):
    done = python(
        checkout,
        """
import sys
import qla_runtime, qla_runtime.cli, qla_runtime.trace
places = {module.__file__.rsplit("/qla_runtime/")[0] for name, module in sys.modules.items()
          if name.startswith("qla_runtime") and name != "qla_runtime._checkout"}
print(places)
print(qla_runtime.Engine.from_pretrained().answer("Who came?", "Ann came to Oslo.")["answer"])
""",
        site,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [repr({str(site)}), "Ann"]


def test_python_in_a_checkout_without_an_installed_package_says_what_to_do(checkout):
    done = python(checkout, "import qla_runtime")
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("ImportError: ")]
    assert f"'{checkout / 'qla_runtime'}' is source code without its compiled module" in message
    assert f"run `pip install .` in '{checkout}'" in message
    assert done.stderr.splitlines()[-1] == message, "one sentence, and nothing behind it"


def test_a_module_compiled_for_another_python_does_not_count(checkout, site):
    (checkout / "qla_runtime" / "_core.cpython-27-x86_64-linux-gnu.so").touch()
    done = python(checkout, "import qla_runtime._core as core; print(core.__file__)", site)
    assert done.stdout.startswith(str(site)), done.stderr


# ---- one sentence for what is missing --------------------------------------------------------------


def refusal(build: Path, *options: str, env: dict[str, str] | None = None) -> str:
    """What CMake ends with, in one line."""
    ninja = f"-DCMAKE_MAKE_PROGRAM={cmake_tools.tool('ninja')}"
    command = [cmake_tools.tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", ninja, *options]
    with pytest.raises(pytest.fail.Exception) as caught:
        cmake_tools.run(*command, env=env)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize("system, machine", [("Linux", "aarch64"), ("Linux", "ppc64le"), ("FreeBSD", "amd64")])
def test_another_machine(tmp_path, system, machine):
    said = refusal(tmp_path, f"-DCMAKE_SYSTEM_NAME={system}", f"-DCMAKE_SYSTEM_PROCESSOR={machine}")
    assert f"qla_runtime runs on Linux on x86-64; this is {system} on {machine}" in said


def test_no_compiler(tmp_path):
    said = refusal(tmp_path / "build", env={"PATH": str(tmp_path), "CXX": "icpx"})
    assert "no C++ compiler was found (CXX is 'icpx'): install g++ 11 or later (Debian: apt install g++)" in said


def test_an_old_compiler(tmp_path):
    gcc = tmp_path / "g++"
    gcc.write_text(f'#!/bin/sh\nexec {cmake_tools.tool("g++")} -w -U__GNUC__ -D__GNUC__=10 "$@"\n')
    gcc.chmod(0o755)
    assert f"qla_runtime needs g++ 11 or later; {gcc} is 10." in refusal(tmp_path / "build", env={"CXX": str(gcc)})


def test_no_python_headers(tmp_path):
    said = refusal(tmp_path, "-DQLA_BUILD_PYTHON=ON", f"-DPython_INCLUDE_DIR={tmp_path}", *cmake_tools.json_hint())
    assert "Python.h was not found: install them (Debian: apt install python3-dev)" in said


def test_no_json_headers(tmp_path):
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=x86_64", "-DCMAKE_FIND_ROOT_PATH=/nowhere"]
    said = refusal(tmp_path, *options, "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY")
    assert "install nlohmann's JSON headers" in said


def test_setup_py_names_what_installs():
    done = subprocess.run([sys.executable, ROOT / "setup.py", "install"], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr == "qla_runtime is installed by `pip install .`; setup.py knows `build_ext --inplace` alone.\n"
    )


# ---- what distributions hold -----------------------------------------------------------------------


def built(folder: Path, call: str) -> Path:
    """A distribution that scikit-build-core makes of this checkout, without compiling."""
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    code = f"import scikit_build_core.build as build; print(build.{call}, end='')"
    return folder / cmake_tools.run(sys.executable, "-c", code, cwd=ROOT).splitlines()[-1]


def test_a_wheel_holds_every_module_and_every_file_beside_them(tmp_path):
    wheel = built(tmp_path, f"build_wheel({str(tmp_path)!r}, {{'wheel.cmake': 'false'}})")
    with zipfile.ZipFile(wheel) as file:
        entries = file.infolist()
    by_cmake = shutil.ignore_patterns("_core*.so", "libqla.so*", "include", "cmake", "__pycache__")
    expected = Path(shutil.copytree(ROOT / "qla_runtime", tmp_path / "expected" / "qla_runtime", ignore=by_cmake))
    files = [path for path in expected.rglob("*") if path.is_file()]
    assert {entry.filename: entry.file_size for entry in entries if ".dist-info/" not in entry.filename} == {
        str(path.relative_to(tmp_path / "expected")): path.stat().st_size for path in files
    }
    assert {entry.filename.split("/")[-1] for entry in entries} >= {"LICENSE", "NOTICE", "entry_points.txt"}


def test_a_source_distribution_holds_what_builds_and_tests_it(tmp_path):
    source = built(tmp_path, f"build_sdist({str(tmp_path)!r})")
    with tarfile.open(source) as file:
        held = {name.split("/", 1)[1] for name in file.getnames()}
    folders = ("bench", "cmake", "csrc", "docs", "examples", "kernels", "recipes", "tests", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert wanted | {"CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"} <= held
    assert not any(name.startswith("models/") or name.endswith(".so") for name in held)


# ---- C++ against the installed package -------------------------------------------------------------


def test_cmake_dir_is_printed_and_is_where_the_config_lies(capsys):
    assert cli.main(["--cmake-dir"]) == 0
    assert capsys.readouterr().out == qla_runtime.cmake_dir() + "\n"
    assert Path(qla_runtime.cmake_dir(), "qlaConfig.cmake").is_file()


def test_the_cpp_example_builds_against_the_installed_package(tmp_path):
    if cmake_tools.SANITIZE:
        pytest.skip("a sanitized library needs a sanitized program around it")
    cmake_tools.tool("g++")
    cmake_tools.configure(ROOT / "examples" / "cpp", tmp_path / "build", f"-Dqla_DIR={qla_runtime.cmake_dir()}")
    cmake_tools.run(cmake_tools.tool("cmake"), "--build", tmp_path / "build")
    package = package_tools.tiny_package("embedding").save(tmp_path / "package")
    printed = cmake_tools.run(tmp_path / "build" / "ragged_batch", package)
    assert printed.count("tokens, ") == 3


# ---- the real thing --------------------------------------------------------------------------------


IMPORT_ALL = """
import importlib, json, pkgutil
import qla_runtime

refused = []
for module in pkgutil.walk_packages(qla_runtime.__path__, "qla_runtime."):
    if module.name.endswith(("__main__", "libqla")):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError:
        refused.append(module.name)
print(json.dumps(refused))
"""


@pytest.fixture
def source(tmp_path) -> Path:
    """What git has of this checkout."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "source" / name)
    return tmp_path / "source"


@pytest.fixture
def venv(tmp_path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    return tmp_path / "venv"


@pytest.mark.slow
def test_an_editable_install_compiles_into_the_checkout(tmp_path, source, venv):
    """Compiles twice and needs the package index."""
    package = source / "qla_runtime"
    cmake_tools.run(venv / "bin" / "pip", "install", "--editable", source)
    assert (package / "libqla.so").is_file() and (package / "cmake" / "qla" / "qlaConfig.cmake").is_file()
    (package / "added.py").write_text("print('added')\n")
    show = "import qla_runtime._core as core, qla_runtime; print(core.__file__, qla_runtime.__file__)"
    for code, printed in (("import qla_runtime.added", "added"), (show, str(package))):
        assert cmake_tools.run(venv / "bin" / "python", "-c", code, cwd=tmp_path).startswith(printed)

    cmake_tools.run(
        venv / "bin" / "pip", "install", "scikit-build-core", "pybind11", "nlohmann-json", "cmake", "ninja"
    )
    build = (str(venv / "bin" / "python"), "setup.py", "build_ext", "--inplace")
    cmake_tools.run(*build, cwd=source)
    before = {path: path.stat().st_mtime for path in (source / "build").rglob("gemm_*.o")}
    (source / "csrc" / "spans.cpp").touch()
    with open(package / "libqla.so", "rb") as mapped:
        cmake_tools.run(*build, cwd=source)
        assert os.fstat(mapped.fileno()).st_nlink == 0, (
            "the new library is another file: who has the old one keeps it"
        )
    assert before == {path: path.stat().st_mtime for path in before}, "compiled again"


@pytest.mark.slow
def test_pip_install_twice_then_python_in_the_checkout(tmp_path, source, venv):
    """Compiles four times and needs the package index."""
    for _ in range(2):
        cmake_tools.run(venv / "bin" / "pip", "install", source)
    stale = source / "qla_runtime" / "stale.py"  # installed, then gone: it must leave no trace
    stale.touch()
    cmake_tools.run(venv / "bin" / "pip", "install", "--no-deps", source)
    stale.unlink()
    cmake_tools.run(venv / "bin" / "pip", "install", "--no-deps", source)
    answer = "Engine.from_pretrained().answer('Who came?', 'Ann came to Oslo.')['answer']"
    ask = f"from qla_runtime import Engine; print({answer})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    python = venv / "bin" / "python"
    done = subprocess.run([python, "-c", ask], cwd=source, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Ann\n"), done.stderr
    assert not list(venv.rglob("stale.py"))
    done = subprocess.run([python, "-c", IMPORT_ALL], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = json.loads(done.stdout)
    assert "qla_runtime.training.loop" in refused
    assert [name for name in refused if not name.startswith(NEED_AN_EXTRA)] == []
    config = cmake_tools.run(venv / "bin" / "qla", "--cmake-dir").strip()
    assert config.startswith(str(venv))
    cmake_tools.configure(source / "examples" / "cpp", tmp_path / "build", f"-Dqla_DIR={config}")
    cmake_tools.run(cmake_tools.tool("cmake"), "--build", tmp_path / "build")
