"""Whole forward passes on emulated AMX: in a process of their own, which preloads tests/emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qla_runtime import _core


def build_emulator(folder: Path) -> Path:
    """The library to preload; skips where the CPU has AMX, or not the AVX-512 that its kernels need beside it."""
    if "amx" in _core.available_isas():
        pytest.skip("this CPU has AMX: other tests run on it")
    if "avx512vnni" not in _core.available_isas():
        pytest.skip("the AMX kernels need AVX-512 beside the tiles, and this CPU lacks it")
    source = Path(__file__).parent / "emulator" / "amx_emulator.cpp"
    library = folder / "libamx_emulator.so"
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


def run(emulator: Path, package: Path | str, batch, index, folder: Path) -> dict[str, np.ndarray]:
    """``raw.run`` of a package with the length configs of test_bit_equality. ``folder``: for files in between."""
    np.savez(folder / "batch.npz", ids=batch[0], offsets=batch[1], types=batch[2], index=index)
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, raw
from test_bit_equality import configs
from qla_runtime import _core
saved = np.load({str(folder / "batch.npz")!r})
engine = _core.Engine({str(package)!r}, isa="amx", num_threads=2)
batch = (saved["ids"], saved["offsets"], saved["types"])
result = raw.run(engine, batch, configs(engine.info["layers"]), saved["index"])
np.savez({str(folder / "result.npz")!r}, **result)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "LD_PRELOAD": str(emulator)})
    return dict(np.load(folder / "result.npz"))
