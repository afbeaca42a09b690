"""The whole encoder by pytest-benchmark: every case of shapes.txt, with all its length configs.

    pytest bench/test_encoder.py --benchmark-json=encoder.json

`extra_info` carries what a number needs beside it. QLA_PACKAGE and QLA_THREADS choose another package and thread
count; QLA_SQUAD (dev-v1.1.json) and QLA_STS (sts-test.csv) give the real texts. Ratios against other runtimes come
from `qla bench peers`, not from here.
"""

from __future__ import annotations

import os

import pytest

from bench import workloads
from bench.worker.runtimes import parse_length
from qla_runtime import Engine, InputError, _core

RUNS = [(case, length) for case in workloads.read() for length in ("full", *case.lengths)]


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine.from_pretrained(
        os.environ.get("QLA_PACKAGE"), num_threads=int(os.environ.get("QLA_THREADS", 0)) or None
    )


@pytest.mark.parametrize(("case", "length"), RUNS, ids=[f"{case.name}-{length}" for case, length in RUNS])
def test_encoder(benchmark, engine: Engine, case: workloads.Case, length: str) -> None:
    config = parse_length(length)
    try:
        batches = workloads.batches(case, engine, os.environ.get("QLA_SQUAD"), os.environ.get("QLA_STS"))
        macs = sum(int(engine.forward(rows, length=config).macs.sum()) for rows in batches)
    except InputError as error:  # no such file, or no such config in this package
        pytest.skip(str(error))
    sequences = sum(map(len, batches))
    tokens = sum(len(row) for rows in batches for row in rows)
    benchmark.extra_info.update(
        isa=_core.available_isas()[-1],
        threads=engine.num_threads,
        sequences=sequences,
        tokens=tokens,
        macs=macs,
        length=length,
    )
    benchmark(lambda: [engine.forward(rows, length=config) for rows in batches])
