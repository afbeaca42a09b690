"""libqla.so in somebody else's C++ program: installed to a prefix, found by CMake and by pkg-config, and its
numbers the ones that Python gets."""

from __future__ import annotations

import re
from pathlib import Path

import cmake_tools
import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import _core

EXAMPLE = cmake_tools.ROOT / "examples" / "cpp"


@pytest.fixture(scope="module")
def by_cmake(prefix: Path, tmp_path_factory) -> Path:
    build = tmp_path_factory.mktemp("by_cmake")
    cmake_tools.configure(EXAMPLE, build, f"-DCMAKE_PREFIX_PATH={prefix}")
    cmake_tools.run(cmake_tools.tool("cmake"), "--build", build)
    return build / "ragged_batch"


@pytest.fixture(scope="module")
def by_pkg_config(prefix: Path, tmp_path_factory) -> Path:
    return compiled(prefix, EXAMPLE / "main.cpp", tmp_path_factory.mktemp("by_pkg_config") / "ragged_batch")


def compiled(prefix: Path, source: Path, program: Path) -> Path:
    """A program of one file, with the flags that pkg-config gives."""
    (folder,) = (path.parent for path in prefix.rglob("qla.pc"))
    flags = cmake_tools.run(
        cmake_tools.tool("pkg-config"), "--cflags", "--libs", "qla", env={"PKG_CONFIG_PATH": str(folder)}
    ).split()
    rpath = f"-Wl,-rpath,{folder.parent}"
    cmake_tools.run("g++", "-std=c++17", "-Wall", "-Werror", "-o", program, source, *flags, rpath)
    return program


def python_numbers(package: str) -> list[tuple[int, int, list[int], list[np.float32]]]:
    """What examples/cpp/main.cpp prints, through Python."""
    engine = _core.Engine(package, num_threads=1)
    info = engine.info
    lengths = [info["max_positions"] >> s for s in range(3)]
    sequences = [
        (5 + 17 * s + 31 * np.arange(n, dtype=np.int32)) % info["vocab_size"] for s, n in enumerate(lengths)
    ]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    batch = np.concatenate(sequences), offsets, np.zeros(offsets[-1], np.int32)
    ratios = [1 - 0.75 * i / info["layers"] for i in range(1, info["layers"] + 1)]
    result = raw.run(engine, batch, [(raw.RATIO, ratios, -1)], want={"logits", "kept", "macs"})
    by_token = len(result["logits"]) == offsets[-1]
    return [
        (
            n,
            int(result["macs"][s]),
            result["kept_counts"][:, s].tolist(),
            list(result["logits"][offsets[s] if by_token else s][:4]),
        )
        for s, n in enumerate(lengths)
    ]


def program_numbers(program: Path, *arguments: str) -> list[tuple[int, int, list[int], list[np.float32]]]:
    pattern = r"sequence \d+: (\d+) tokens, (\d+) MACs, kept ([\d ]+)\n.*logits (.*)\n"
    return [
        (int(tokens), int(macs), [int(n) for n in kept.split()], [np.float32(x) for x in logits.split()])
        for tokens, macs, kept, logits in re.findall(pattern, cmake_tools.run(program, *arguments))
    ]


@pytest.mark.parametrize("program", ["by_cmake", "by_pkg_config"])
@pytest.mark.parametrize("task", ["span-qa", "embedding"])
def test_the_example_gets_pythons_numbers(program: str, task: str, tmp_path: Path, request) -> None:
    package = str(package_tools.tiny_package(task, layers=3).save(tmp_path / "package"))
    want = python_numbers(package)
    assert len(want) == 3
    assert program_numbers(request.getfixturevalue(program), package, "2") == want


def test_cpp_finds_pythons_spans(prefix: Path, tmp_path: Path) -> None:
    program = compiled(prefix, cmake_tools.ROOT / "tests" / "cpp" / "door_spans.cpp", tmp_path / "spans")
    package = str(package_tools.tiny_package("span-qa").save(tmp_path / "package"))
    ids = np.array([(7 + 31 * i + window) % 100 for window in range(2) for i in range(20)], np.int32)
    offsets, questions = np.array([0, 20, 40], np.int64), np.array([0, 2], np.int64)
    is_context = np.tile(np.array([5 <= i < 19 for i in range(20)], np.uint8), 2)
    batch = ids, offsets, np.zeros(40, np.int32)
    full = [(raw.RATIO, [1.0, 1.0], -1)]
    logits = raw.run(_core.Engine(package, num_threads=1), batch, full, want={"logits"})["logits"]
    for rule in range(3):
        found = _core.top_spans(logits, is_context, offsets, questions, np.array([0, 9], np.int64), 6, 8, rule)
        counts, *columns, null_score = found
        assert counts[0] == 8
        *spans, null = cmake_tools.run(program, package, "8", str(rule)).split("\n")[:-1]
        assert np.float32(null) == null_score[0]
        for line, *expected in zip(spans, *(column[0] for column in columns), strict=True):
            *tokens, score = line.split()
            assert [*map(int, tokens), np.float32(score)] == expected
    with pytest.raises(pytest.fail.Exception, match="score is 3"):
        cmake_tools.run(program, package, "8", "3")


def test_the_example_runs_the_default_model(by_cmake: Path) -> None:
    package = raw.default_package()
    if not package.is_dir():
        pytest.skip("the default model is not in this tree")
    assert program_numbers(by_cmake, str(package)) == python_numbers(str(package))


def test_a_bad_package_is_one_line_and_an_exit_status(by_cmake: Path, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"exit status 1\n\n.*manifest\.json"):
        cmake_tools.run(by_cmake, tmp_path)


def test_only_the_c_functions_are_exported(prefix: Path) -> None:
    (library,) = prefix.rglob("libqla.so")
    symbols = cmake_tools.run(cmake_tools.tool("nm"), "-D", "--defined-only", "-P", library).splitlines()
    names = {line.split()[0] for line in symbols}
    assert "qla_run" in names
    assert {name for name in names if not name.startswith("qla_")} == set()
