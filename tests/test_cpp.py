"""The GoogleTest binaries of tests/cpp: as they are and, on a CPU without AMX, once more with AMX emulated.

QLA_SANITIZE=address,undefined (or thread) builds and runs them under sanitizers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import cmake_tools
import pytest

from qla_runtime import _core

BINARIES = sorted(source.stem for source in Path(__file__).parent.glob("cpp/test_*.cpp"))
WITH_AMX_CODE = [name for name in BINARIES if name.startswith("test_amx_")] + ["test_cpu_features"]
ON_EVERY_ISA = ["test_attention", "test_gemm", "test_polynomials", "test_rowwise"]
"""Their tests of kernels are named after an instruction set (tests/cpp/kernel_fixtures.h)."""
NOTHING_ELSE = ["test_polynomials"]
ISAS = ["ref", "avx2", "avxvnni", "avx512vnni", "amx"]


@pytest.fixture(scope="module")
def folder() -> Path:
    build = cmake_tools.cpp_build()
    if build.no_tests:
        pytest.skip(build.no_tests)
    return build.folder / "tests" / "cpp"


def run_gtest(program: Path, tests: str = "*", env: dict[str, str] | None = None) -> None:
    output = cmake_tools.run(program, f"--gtest_filter={tests}", env=env)
    assert "Running 0 tests" not in output
    skipped = re.search(r"Skipped\n(.+)", output)
    if skipped and "[  PASSED  ] 0 tests" in output:
        pytest.skip(skipped[1])


@pytest.mark.parametrize("name", [name for name in BINARIES if name not in NOTHING_ELSE])
def test_gtest(name: str, folder: Path) -> None:
    run_gtest(folder / name, "-" + ":".join(f"*/{isa}" for isa in ISAS))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ON_EVERY_ISA)
def test_gtest_on(name: str, isa: str, folder: Path) -> None:
    run_gtest(folder / name, f"*/{isa}")


@pytest.mark.parametrize(
    ("name", "tests"), [*((name, "*") for name in WITH_AMX_CODE), *((name, "*/amx") for name in ON_EVERY_ISA)]
)
def test_gtest_with_emulated_amx(name: str, tests: str, folder: Path) -> None:
    if "amx" in _core.available_isas():
        pytest.skip("this CPU has AMX: the binary above ran on it")
    # The address sanitizer wants to be the first library; here the emulator is, and does it no harm.
    asan = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"]))
    run_gtest(folder / name, tests, {"LD_PRELOAD": str(folder / "libamx_emulator.so"), "ASAN_OPTIONS": asan})
