#!/usr/bin/env python3
"""Tests the kernels of AVX-512 and AVX-VNNI on a CPU that has neither.

    tools/try_avx512.py [--build FOLDER]

Compiles these kernels against SIMDe, which computes each intrinsic in portable C++ (Debian: libsimde-dev, and
libgtest-dev), and runs the C++ tests of the GEMM, of attention and of the row-wise kernels: all of them must give
the bits of the plain C++ kernels. It takes two minutes of CPU time. It says nothing about speed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
TESTS = ("test_gemm", "test_attention", "test_rowwise")
SIMDE = Path("/usr/include/simde")

# What SIMDe 0.7 lacks, over 16 lanes.
MISSING = """
template <class To, class From> static inline To bits_as(const From& from) {
  To to; static_assert(sizeof to == sizeof from); std::memcpy(&to, &from, sizeof to); return to;
}
template <class T> struct Lanes { T v[16]; };
template <class To, class From, class Vector> static inline Lanes<To> converted(const Vector& a) {
  const auto from = bits_as<Lanes<From>>(a);
  Lanes<To> to;
  for (int i = 0; i < 16; ++i) to.v[i] = static_cast<To>(from.v[i]);
  return to;
}
#define QLA_CVT(name, To, ToVector, From, FromVector) \\
  static inline ToVector qla##name(FromVector a) { return bits_as<ToVector>(converted<To, From>(a)); }
QLA_CVT(_mm512_cvtepi32_epi16, int16_t, __m256i, int32_t, __m512i)
QLA_CVT(_mm512_cvtepi32_epi8, int8_t, __m128i, int32_t, __m512i)
QLA_CVT(_mm512_cvtepi32_ps, float, __m512, int32_t, __m512i)
QLA_CVT(_mm512_cvtepi8_epi32, int32_t, __m512i, int8_t, __m128i)
QLA_CVT(_mm512_cvtepu16_epi32, int32_t, __m512i, uint16_t, __m256i)
static inline __m512i qla_mm512_cvtps_epi32(__m512 a) {
  const auto from = bits_as<Lanes<float>>(a);
  Lanes<int32_t> to;
  for (int i = 0; i < 16; ++i) to.v[i] = _mm_cvtss_si32(_mm_set_ss(from.v[i]));
  return bits_as<__m512i>(to);
}
static inline __m256 qla_mm512_extractf32x8_ps(__m512 a, int half) {
  return _mm256_loadu_ps(bits_as<Lanes<float>>(a).v + 8 * half);
}
static inline float qla_mm512_reduce_max_ps(__m512 a) {
  const auto from = bits_as<Lanes<float>>(a);
  return *std::max_element(from.v, from.v + 16);
}
static inline float qla_mm512_reduce_min_ps(__m512 a) {
  const auto from = bits_as<Lanes<float>>(a);
  return *std::min_element(from.v, from.v + 16);
}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "simde", metavar="FOLDER")
    build = parser.parse_args().build
    if not SIMDE.is_dir():
        sys.exit(f"{SIMDE} is not there; install SIMDe (Debian: libsimde-dev)")
    (build / "include").mkdir(parents=True, exist_ok=True)
    (build / "include" / "immintrin.h").write_text(intrinsics())
    (build / "cpu_features.cpp").write_text(every_feature())
    sources = [path for path in sorted(KERNELS.glob("*.cpp")) if path.name != "cpu_features.cpp"]
    sources.append(build / "cpu_features.cpp")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: compiled(source, build), sources))
        programs = list(pool.map(lambda name: linked(name, objects, build), TESTS))
    return max(
        subprocess.run([program], env=os.environ | {"QLA_MAX_ISA": "avx512vnni"}).returncode
        for program in programs
    )


def intrinsics() -> str:
    """An immintrin.h whose 512-bit names are SIMDe's."""
    text = "".join(path.read_text() for path in (*KERNELS.glob("*.h"), *KERNELS.glob("simd/*.h")))
    ours = set(re.findall(r"_mm512_\w+(?=[,(])", MISSING)) | set(re.findall(r"qla(_mm512_\w+)", MISSING))
    lines = ["#pragma once", "#include_next <immintrin.h>", "#include <simde/x86/avx512.h>"]
    lines += ["#include <algorithm>", "#include <cstring>"]
    lines += ["#define __m512 simde__m512", "#define __m512i simde__m512i", MISSING]
    for name in sorted(set(re.findall(r"_mm512_\w+", text))):
        lines += [f"#undef {name}", f"#define {name} {'qla' if name in ours else 'simde'}{name}"]
    lines.append("#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32")
    return "\n".join(lines) + "\n"


def every_feature() -> str:
    """cpu_features.cpp for a CPU that has AVX-512 and AVX-VNNI."""
    text = (KERNELS / "cpu_features.cpp").read_text()
    before, found, after = text.partition("  return facts;\n}\n\nconst char* missing")
    assert found, "read_cpu() in cpu_features.cpp no longer ends as this script expects"
    return f"{before}  facts.avx512_vnni = facts.avx_vnni = facts.os_zmm = true;\n{found}{after}"


def compiled(source: Path, build: Path) -> Path:
    flags = ["-march=x86-64-v2"]
    if "amx" in source.name:  # never runs here
        flags += [
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx512vnni",
            "-mamx-tile",
            "-mamx-int8",
            "-mfma",
        ]
    elif "avx" in source.name:
        flags += ["-mavx2", "-mfma"]
    if "avx512" in source.name or "avxvnni" in source.name:
        flags += ["-I", str(build / "include")]
    out = build / f"{source.stem}.o"
    run("-O2", "-ffp-contract=off", "-fPIC", *flags, "-c", source, "-o", out)
    return out


def linked(name: str, objects: list[Path], build: Path) -> Path:
    run(
        "-O2",
        ROOT / "tests" / "cpp" / f"{name}.cpp",
        *objects,
        "-lgtest",
        "-lgtest_main",
        "-pthread",
        "-o",
        build / name,
    )
    return build / name


def run(*arguments: str | Path) -> None:
    folders = (KERNELS, ROOT / "csrc", ROOT / "csrc" / "include", ROOT / "tests" / "cpp")
    include = [word for folder in folders for word in ("-I", str(folder))]
    subprocess.run(
        [os.environ.get("CXX", "g++"), "-std=c++20", "-w", "-Wno-psabi", *include, *map(str, arguments)],
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
