"""Spark's predict_batch_udf, as docs/bulk.md has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyspark", reason="this test needs pyspark")
pytest.importorskip("pyarrow", reason="Spark hands batches over by pyarrow")

import bulk_tools  # noqa: E402
import cli_tools  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from qla_runtime import Engine  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_the_example_gives_the_engines_bits(tmp_path: Path):
    rows = bulk_tools.table(100).select(["id", "text"])
    bulk_tools.write(tmp_path / "pages.parquet", rows)
    environment = cli_tools.ENVIRONMENT | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYSPARK_SUBMIT_ARGS"] = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
    done = subprocess.run(
        [sys.executable, ROOT / "examples/spark/embed_files.py", tmp_path / "pages.parquet", tmp_path / "vectors"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wrote 100 vectors" in done.stdout
    files = [tmp_path / "vectors" / name for name in os.listdir(tmp_path / "vectors") if name.endswith(".parquet")]
    found = {row["id"]: row["embedding"] for path in files for row in pq.read_table(path).to_pylist()}
    with Engine.from_pretrained(bulk_tools.MODEL) as engine:
        expected = engine.encode(rows["text"].to_pylist(), "fast")
    assert sorted(found) == rows["id"].to_pylist()
    assert np.array_equal(np.array([found[i] for i in sorted(found)], np.float32), expected)
