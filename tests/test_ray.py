"""Ray Data and Ray Serve, on a cluster of several nodes on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="these tests need ray[data,serve]")
pa = pytest.importorskip("pyarrow", reason="Ray Data needs pyarrow")

import bulk_tools  # noqa: E402
import cli_tools  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from qla_runtime import Engine, InputError, LatencyBudget, UnsupportedError  # noqa: E402
from qla_runtime.bulk.options import ClassifyOptions, EmbedOptions  # noqa: E402
from qla_runtime.integrations import ray as qla_ray  # noqa: E402
from qla_runtime.integrations.ray import BatchModel  # noqa: E402

MODEL = bulk_tools.MODEL


@pytest.fixture(autouse=True)
def no_tokenizer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an actor sets for its process is gone after a test."""
    monkeypatch.setenv(qla_ray.TOKENIZER_THREADS, "1")


# --------------------------------------------------------------------------------- without a cluster


def test_batches_of_arrow_and_of_numpy():
    rows = bulk_tools.table(12)
    model = BatchModel(MODEL, length="fast", num_threads=1)
    with Engine.from_pretrained(MODEL, num_threads=1) as engine:
        expected = engine.encode(rows["text"].to_pylist(), "fast")
    out = model(rows)
    assert out.select(rows.column_names).equals(rows)
    assert np.array_equal(out["embedding"].combine_chunks().flatten().to_numpy().reshape(12, -1), expected)
    arrays = model({"id": np.arange(12), "text": np.array(rows["text"].to_pylist(), object)})
    assert list(arrays) == ["id", "text", "embedding"]
    assert np.array_equal(arrays["embedding"], expected)
    assert model(rows.slice(0, 0)).num_rows == 0


def test_labels(packages: dict[str, str]):
    model = BatchModel(packages["sequence-classification"], num_threads=1, options=ClassifyOptions(top_k=2))
    out = model({"text": np.array(["a bird", "rain"], object)})
    with Engine(packages["sequence-classification"], num_threads=1) as engine:
        expected = engine.classify(["a bird", "rain"], top_k=2)
    assert [{key: out[key][i] for key in ("label", "score", "scores")} for i in range(2)] == [
        {key: row[key] for key in ("label", "score", "scores")} for row in expected
    ]


def test_what_does_not_fit_is_refused(packages: dict[str, str]):
    with pytest.raises(UnsupportedError, match="length is a LatencyBudget, which nodes of different speed"):
        BatchModel(MODEL, length=LatencyBudget(5))
    with pytest.raises(InputError, match="length 'slow' is not one of this package's configs"):
        BatchModel(MODEL, length="slow", num_threads=1)
    with pytest.raises(UnsupportedError, match="is a span-qa model; open one that embeds or classifies texts"):
        BatchModel(packages["span-qa"], num_threads=1)
    with pytest.raises(InputError, match="takes ClassifyOptions"):
        BatchModel(packages["sequence-classification"], num_threads=1, options=EmbedOptions())
    model = BatchModel(MODEL, num_threads=1)
    with pytest.raises(InputError, match="there is no column 'text'; it is one of body"):
        model({"body": np.array(["a"], object)})
    with pytest.raises(InputError, match=r"text\[1\] is None; it must be a text"):
        model(pa.table({"text": ["a", None]}))
    with pytest.raises(InputError, match="the column 'embedding' is there already"):
        model(pa.table({"text": ["a"], "embedding": [1]}))
    with pytest.raises(InputError, match="batch_format='pyarrow' or 'numpy'"):
        model(["a"])


# -------------------------------------------------------------------------------------- on a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without work, and three nodes of two CPUs."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    for _ in range(3):
        cluster.add_node(num_cpus=2, **store)
    ray.init(address=cluster.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def vectors_in(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))).sort_by("id")


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_threads_are_the_cpus_of_the_actor(cluster: Any, cpus: int):
    @ray.remote(num_cpus=cpus)
    class Probe:
        def threads(self) -> tuple[int, str]:
            import os

            model = BatchModel(MODEL)
            return model._engine.num_threads, os.environ[qla_ray.TOKENIZER_THREADS]

    assert ray.get(Probe.remote().threads.remote()) == (cpus, str(cpus))


@pytest.mark.slow
def test_a_node_that_dies_costs_no_row(cluster: Any, tmp_path: Path):
    count = 6000
    rows = bulk_tools.table(count).select(["id", "text"])
    source = bulk_tools.write(tmp_path / "in.parquet", rows, row_group_size=500)
    out = tmp_path / "out"
    job = (
        ray.data.read_parquet(str(source))
        .repartition(24)
        .map_batches(
            BatchModel,
            fn_constructor_kwargs={"model": MODEL, "length": "fast"},
            batch_size=250,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=3),
        )
    )
    killed = []

    def kill() -> None:
        while not list(out.rglob("*.parquet")):
            time.sleep(0.05)
        # A node with an actor of the job on it, which is in the middle of a batch or has results that nobody read.
        from ray.util.state import list_actors

        nodes = {node.node_id: node for node in cluster.worker_nodes}
        busy = [a.node_id for a in list_actors(filters=[("state", "=", "ALIVE")]) if a.node_id in nodes]
        cluster.remove_node(nodes[busy[0]], allow_graceful=False)
        killed.append(busy[0])

    killer = threading.Thread(target=kill)
    killer.start()
    job.write_parquet(str(out))
    killer.join()
    assert len(killed) == 1 and len(list(out.rglob("*.parquet"))) > 1
    found = vectors_in(out)
    assert found["id"].to_pylist() == list(range(1000, 1000 + count))
    with Engine.from_pretrained(MODEL) as engine:
        expected = engine.encode(rows["text"].to_pylist(), "fast")
    assert np.array_equal(found["embedding"].combine_chunks().flatten().to_numpy().reshape(count, -1), expected)


@pytest.fixture(scope="module")
def address(cluster: Any) -> Iterator[str]:
    """Of a deployment with small batches."""
    from ray import serve

    from qla_runtime.integrations.ray_serve import application

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"port": port})
    serve.run(application(MODEL, batch_tokens=1024, num_threads=1))
    yield f"http://127.0.0.1:{port}/"
    serve.shutdown()


def ask(address: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(address, body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_requests_that_share_batches_get_the_bits_of_a_call_alone(address: str):
    texts = bulk_tools.sentences(120)
    groups = [texts[i : i + 1 + i % 9] for i in range(0, 120, 5)]
    found: list[Any] = [None] * len(groups)

    def one(i: int) -> None:
        length = "fast" if i % 2 else "full"
        found[i] = ask(address, json.dumps({"inputs": groups[i], "length": length}).encode())

    threads = [threading.Thread(target=one, args=[i]) for i in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Engine.from_pretrained(MODEL, num_threads=1) as engine:
        for i, group in enumerate(groups):
            expected = engine.encode(group, "fast" if i % 2 else "full")
            assert found[i][0] == 200 and np.array_equal(np.array(found[i][1], np.float32), expected)


@pytest.mark.slow
def test_handles(address: str):
    from ray import serve

    handle = serve.get_app_handle("default")
    vectors = handle.run.remote(["a bird sings"] * 50, "fast").result()
    with Engine.from_pretrained(MODEL, num_threads=1) as engine:
        assert np.array_equal(np.stack(vectors), engine.encode(["a bird sings"] * 50, "fast"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is no JSON"),
        (b"[1]", "the body has no key 'inputs'"),
        (b'{"inputs": "a", "x": 1}', "the body has the key 'x'; only 'inputs' and 'length' are known"),
        (b'{"inputs": []}', "inputs is an empty list"),
        (b'{"inputs": [1]}', r"inputs[0] is of type int"),
        (b'{"inputs": "a", "length": "slow"}', "length 'slow' is not one of this package's configs"),
        (b'{"inputs": "a", "length": 5}', "length is 5; it must be a config's name"),
    ],
)
def test_bad_requests(address: str, body: bytes, message: str):
    status, answer = ask(address, body)
    assert status == 422 and message in answer["error"]
    assert ask(address, b'{"inputs": "a"}')[0] == 200


@pytest.mark.slow
def test_the_examples(tmp_path: Path):
    examples = Path(__file__).resolve().parents[1] / "examples" / "ray"
    rows = bulk_tools.table(60).select(["id", "text"])
    (tmp_path / "pages").mkdir()
    bulk_tools.write(tmp_path / "pages" / "a.parquet", rows)
    for name, arguments, said in [
        ("embed_files.py", [str(tmp_path / "pages"), str(tmp_path / "vectors")], "wrote 60 vectors"),
        ("serve_model.py", [], "2 vectors of 384 numbers"),
    ]:
        done = subprocess.run(
            [sys.executable, str(examples / name), *arguments],
            env={**cli_tools.ENVIRONMENT, "RAY_ADDRESS": ""},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr[-2000:]
    out = vectors_in(tmp_path / "vectors")
    assert out["id"].to_pylist() == rows["id"].to_pylist()
