"""mteb's STS benchmark from local files: python examples/python/mteb_sts.py sts-test.csv [LENGTH]

It prints the Spearman correlation that this command prints, too:

    qla eval sts sts-test.csv --model all-minilm-l6-v2 --length LENGTH

sts-test.csv is a file of the STS benchmark. To let mteb download its data, give ``mteb.evaluate`` a task of
``mteb.get_tasks``. Needs: pip install mteb 'qla_runtime[sentence-transformers]'
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.tasks.sts.eng.sts_benchmark_sts import STSBenchmarkSTS
from sentence_transformers import SentenceTransformer

from qla_runtime.integrations.sentence_transformers import QlaEncoder
from qla_runtime.texts.data_sets import read_scored_pairs


class LocalSTSBenchmark(STSBenchmarkSTS):
    """The benchmark's test set, read from ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        scores, first, second = read_scored_pairs(self.path)
        self.dataset = {"test": Dataset.from_dict({"sentence1": first, "sentence2": second, "score": scores})}
        self.data_loaded = True


def evaluate(path: Path, length: str = "full") -> float:
    """Spearman's correlation, in percent."""
    model = SentenceTransformer(modules=[QlaEncoder("all-minilm-l6-v2", length=length)])
    encode_kwargs = {"batch_size": 256, "show_progress_bar": False}
    result = mteb.evaluate(model, LocalSTSBenchmark(path), encode_kwargs=encode_kwargs, cache=None)
    return 100 * result.task_results[0].scores["test"][0]["main_score"]


if __name__ == "__main__":
    print(f"spearman {evaluate(Path(sys.argv[1]), *sys.argv[2:]):.2f}")
