"""The whole encoder by pytest-benchmark, over shapes.txt, at full length and with a length config.

    pytest bench --benchmark-json=encoder.json

`extra_info` carries what a number needs beside it: instruction set, threads, MACs. QLA_PACKAGE and QLA_THREADS
choose another package and thread count. Ratios against other runtimes come from peers.py, not from here.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qla_runtime import Engine, LengthConfig, _core

SHAPES = [
    tuple(int(x) for x in line.split("x"))
    for line in (Path(__file__).parent / "shapes.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PUBLISHED = (315, 251, 242, 159, 142, 33)  # QuaLA-MiniLM's headline config at 384 tokens


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine.from_pretrained(
        os.environ.get("QLA_PACKAGE"), num_threads=int(os.environ.get("QLA_THREADS", 0)) or None
    )


@pytest.mark.parametrize("keep", ["full", "published"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_encoder(benchmark, engine: Engine, shape: tuple[int, int], keep: str) -> None:
    if keep == "published" and engine.layers != len(PUBLISHED):
        pytest.skip(f"the published config is for 6 layers; this model has {engine.layers}")
    length = "full" if keep == "full" else LengthConfig.ratio([k / 384 for k in PUBLISHED])
    ids = np.random.default_rng(0).integers(1000, engine._info["vocab_size"] - 1, shape)
    output = engine.forward(ids, length=length)
    benchmark.extra_info.update(
        isa=_core.available_isas()[-1], threads=engine.num_threads, macs=int(sum(output.macs)), length=keep
    )
    benchmark(engine.forward, ids, length=length)
