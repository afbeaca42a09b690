"""Embeds a Parquet folder with Spark: python examples/spark/embed_files.py PAGES VECTORS

The files have the columns `id` and `text`. Needs pyspark 3.4 or later, with pandas and pyarrow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType


def load() -> Callable[[np.ndarray], np.ndarray]:
    """Opens the model in a worker process of Spark, which calls this once."""
    from qla_runtime import Engine

    # A name or a path, which every node opens by itself: its processes then share the mapped weights. One thread,
    # because Spark runs one worker process per core.
    engine = Engine.from_pretrained("all-minilm-l6-v2", num_threads=1, weights="mapped")
    return lambda texts: engine.encode(texts, "fast")


pages, vectors = sys.argv[1:]
# The tokenizer's threads: Spark's workers share the cores already.
spark = SparkSession.builder.config("spark.executorEnv.RAYON_NUM_THREADS", "1").getOrCreate()
embed = predict_batch_udf(load, return_type=ArrayType(FloatType()), batch_size=1024)
rows = spark.read.parquet(pages).select("id", embed("text").alias("embedding"))
rows.write.parquet(vectors)
print(f"wrote {spark.read.parquet(vectors).count()} vectors to {vectors}")
