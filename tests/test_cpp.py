"""The GoogleTest binaries of tests/cpp: as they are and, on a CPU without AMX, once more with AMX emulated.

QLA_SANITIZE=address,undefined (or thread) builds and runs them under sanitizers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import cmake_tools
import pytest
import raw

BINARIES = sorted(source.stem for source in Path(__file__).parent.glob("cpp/test_*.cpp"))
WITH_AMX_CODE = ["test_amx_emulator", "test_attention", "test_cpu_features", "test_gemm"]


@pytest.fixture(scope="module")
def folder() -> Path:
    build = cmake_tools.cpp_build()
    if build.no_tests:
        pytest.skip(build.no_tests)
    return build.folder / "tests" / "cpp"


def run_gtest(program: Path, env: dict[str, str] | None = None) -> None:
    output = cmake_tools.run(program, env=env)
    skipped = re.search(r"Skipped\n(.+)", output)
    if skipped and "[  PASSED  ] 0 tests" in output:
        pytest.skip(skipped[1])


@pytest.mark.parametrize("name", BINARIES)
def test_gtest(name: str, folder: Path) -> None:
    run_gtest(folder / name)


@pytest.mark.parametrize("name", WITH_AMX_CODE)
def test_gtest_with_emulated_amx(name: str, folder: Path) -> None:
    if "amx" in raw.available_isas():
        pytest.skip("this CPU has AMX: the binary above ran on it")
    # The address sanitizer wants to be the first library; here the emulator is, and does it no harm.
    asan = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"]))
    run_gtest(folder / name, {"LD_PRELOAD": str(folder / "libamx_emulator.so"), "ASAN_OPTIONS": asan})
