"""tools/check_symbols.py: what it finds, and that the kernels of an instruction set have nothing of the kind."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cmake_tools
import pytest

CHECK = cmake_tools.ROOT / "tools" / "check_symbols.py"


def test_files_of_an_instruction_set_define_no_library_template():
    cmake_tools.tool("nm")
    printed = cmake_tools.run(sys.executable, CHECK, cmake_tools.cpp_build().folder)
    assert printed.endswith(" 0 symbols that other files may define, too\n")
    sources = list((cmake_tools.ROOT / "kernels").glob("*_*.cpp"))
    beyond_the_baseline = [path for path in sources if path.stem.split("_")[-1].startswith(("avx", "amx"))]
    assert printed.startswith(f"{len(beyond_the_baseline)} object files, ")


@pytest.mark.parametrize(
    "code, symbol",
    [
        ("#include <algorithm>\nvoid f(int* x, int n) { std::sort(x, x + n); }", "std::__introsort_loop<int*"),
        ("#include <functional>\nvoid f(std::function<void()>& g) { g = [] {}; }", "std::_Function_"),
        ("inline int twice(int x) { return 2 * x; }\nint (*f())(int) { return twice; }", "twice(int)"),
        ("template <int n> inline int count = n;\nint* f() { return &count<3>; }", "count<3>"),
    ],
)
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_what_another_file_may_define_is_found(tmp_path: Path, code: str, symbol: str, level: str):
    cmake_tools.tool("nm")
    folder = tmp_path / "CMakeFiles" / "qla_avx2.dir" / "kernels"
    folder.mkdir(parents=True)
    (tmp_path / "kernel.cpp").write_text(code)
    command = [cmake_tools.tool("g++"), "-std=c++20", level, "-mavx2", "-c"]
    cmake_tools.run(*command, tmp_path / "kernel.cpp", "-o", folder / "kernel.cpp.o")
    with pytest.raises(pytest.fail.Exception) as caught:
        cmake_tools.run(sys.executable, CHECK, tmp_path)
    assert re.search(rf"kernel\.cpp\.o: .*{re.escape(symbol)}", str(caught.value))
