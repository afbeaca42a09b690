"""Installing, and what an installation gives: Python in a checkout's own folder, C++ programs, plain refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
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
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_one_version_everywhere():
    def number(file: str, pattern: str) -> str:
        return ".".join(re.search(pattern, (ROOT / file).read_text(encoding="utf-8")).groups())

    macros = r"VERSION_MAJOR (\d+)\n#define QLA_VERSION_MINOR (\d+)\n#define QLA_VERSION_PATCH (\d+)\n"
    versions = {
        "pyproject.toml": number("pyproject.toml", r'(?m)^version = "(.*)"$'),
        "CMakeLists.txt": number("CMakeLists.txt", r"project\(qla VERSION (\S+) "),
        "qla.h": number("csrc/include/qla/qla.h", macros),
        "_core": _core.version(),
        "CMake's config": number("qla_runtime/cmake/qla/qlaConfigVersion.cmake", r'PACKAGE_VERSION "(.*)"'),
        "qla_runtime": qla_runtime.__version__,
    }
    assert len(set(versions.values())) == 1, versions


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


@pytest.fixture
def setup_py(monkeypatch):
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CXX", raising=False)
    return module


def refusal(check) -> str:
    with pytest.raises(SystemExit) as caught:
        check()
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("qla_runtime") and message.endswith(".")
    assert "\n" not in message
    return message


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "system, machine", [("Linux", "aarch64"), ("Linux", "ppc64le"), ("Darwin", "arm64"), ("Windows", "AMD64")]
)
def test_another_machine(setup_py, monkeypatch, system, machine):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert f"this is {system} on {machine}" in refusal(setup_py.check_machine)


def test_no_compiler(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "'g++' was not found: install g++ 11 or later (Debian: apt install g++)" in refusal(
        setup_py.check_machine
    )
    monkeypatch.setenv("CXX", "icpx -O3")
    assert "'icpx -O3' was not found" in refusal(setup_py.check_machine)


def test_an_old_compiler(setup_py, monkeypatch, tmp_path):
    gcc = program(tmp_path, "g++", 'case $1 in -dumpversion) echo 10;; *) echo "g++ (Debian) 10.2.1";; esac')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"needs g++ 11 or later; {gcc} is version 10" in refusal(setup_py.check_machine)


def test_no_python_headers(setup_py, monkeypatch, tmp_path):
    program(tmp_path, "g++", 'case $1 in -dumpversion) echo 12;; *) echo "g++ 12.2.0";; esac')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    message = refusal(setup_py.check_machine)
    assert f"'{tmp_path}/Python.h' is missing" in message and "python3-dev" in message


def test_no_json_headers(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py.importlib.metadata, "files", lambda name: None)
    monkeypatch.setattr(setup_py, "SYSTEM_INCLUDES", ())
    message = refusal(setup_py.nlohmann_json_include)
    assert "pip install nlohmann-json" in message and "nlohmann-json3-dev" in message


@pytest.mark.parametrize(
    "option, words",
    [
        ("-DCMAKE_SYSTEM_PROCESSOR=aarch64", "runs on Linux on x86-64; this is Linux on"),
        ("-DCMAKE_FIND_ROOT_PATH=/nowhere", "install nlohmann's JSON headers"),
    ],
)
def test_cmake_says_it_too(tmp_path, option, words):
    options = ["-DCMAKE_SYSTEM_NAME=Linux", option, "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY"]
    if "PROCESSOR" not in option:
        options.append("-DCMAKE_SYSTEM_PROCESSOR=x86_64")
    with pytest.raises(pytest.fail.Exception) as caught:
        cmake_tools.configure(ROOT, tmp_path / "build", *options)
    assert words in " ".join(str(caught.value).split())


# ---- what a wheel holds ----------------------------------------------------------------------------


def test_a_wheel_holds_every_module_and_every_file_beside_them(tmp_path):
    pytest.importorskip("setuptools")
    cmake_tools.run(sys.executable, ROOT / "setup.py", "--quiet", "build_py", "--build-lib", tmp_path, cwd=ROOT)
    source, built = ROOT / "qla_runtime", tmp_path / "qla_runtime"
    compiled = {
        "_core*.so",
        "libqla.so",
        "include",
        "cmake",
        "__pycache__",
        "*.pyc",
        "*.new",
    }  # by CMake, or cached
    shutil.copytree(source, tmp_path / "expected", ignore=shutil.ignore_patterns(*compiled))

    def files(folder: Path) -> dict[str, int]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.stat().st_size for path in found}

    assert files(built) == files(tmp_path / "expected")


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


@pytest.mark.slow
def test_pip_install_twice_then_python_in_the_checkout(tmp_path):
    """Compiles four times and needs the package index."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    for _ in range(2):
        cmake_tools.run(venv / "bin" / "pip", "install", source)
    stale = source / "qla_runtime" / "stale.py"  # installed, then gone: it must leave no trace
    stale.touch()
    cmake_tools.run(venv / "bin" / "pip", "install", "--no-deps", source)
    stale.unlink()
    cmake_tools.run(venv / "bin" / "pip", "install", "--no-deps", source)
    answer = "Engine.from_pretrained().answer('Who came?', 'Ann came.')['answer']"
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
