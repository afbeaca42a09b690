"""Embeds a folder of Parquet files on a Ray cluster: python examples/ray/embed_files.py PAGES VECTORS

RAY_ADDRESS names the cluster; without it, Ray starts one on this machine. The files have columns `id` and `text`.
"""

from __future__ import annotations

import sys

import ray

from qla_runtime.bulk.options import EmbedOptions
from qla_runtime.integrations.ray import BatchModel

pages, vectors = sys.argv[1:]
cpus = 1  # of one actor, and so its threads; the tasks that read and write need CPUs, too
ray.init()
ray.data.read_parquet(pages, columns=["id", "text"]).map_batches(
    BatchModel,
    fn_constructor_kwargs={
        "model": "all-minilm-l6-v2",  # or a package folder that every node has at this path
        "length": "fast",
        "options": EmbedOptions(vectors="float16"),
    },
    batch_size=1024,
    batch_format="pyarrow",
    num_cpus=cpus,
    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
).drop_columns(["text"]).write_parquet(vectors)
print(f"wrote {ray.data.read_parquet(vectors).count()} vectors to {vectors}")
