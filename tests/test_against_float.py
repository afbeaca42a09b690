"""The INT8 engine against an independent float implementation, on real SQuAD features of the default model.

The float side is written here, in PyTorch, from docs/architecture.md's length semantics and the Hugging Face
checkpoint's own tensor names; it shares nothing with qla_runtime. It needs the checkpoint that the default
package was converted from (models/, or QLA_CHECKPOINT) and SQuAD dev (QLA_DATA); without them it skips and says
so.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import raw
import tokenizers

from qla_runtime import _core

torch = pytest.importorskip("torch", reason="the float reference needs torch (pip install '.[convert]')")
safetensors = pytest.importorskip(
    "safetensors.torch", reason="the float checkpoint needs safetensors (pip install '.[convert]')"
)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
CHECKPOINT = Path(os.environ.get("QLA_CHECKPOINT", ROOT / "models" / "minilm-l6-squad"))
SQUAD = Path(os.environ.get("QLA_DATA", SHARED / "data")) / "squad1.1.tar.xz"
FEATURES = 200

CONFIGS = {
    "ratios": (raw.RATIO, np.array([315, 251, 242, 159, 142, 33]) / 384, 1),
    "counts": (raw.TOKENS, np.array([200.0, 120, 100, 64, 32, 16]), 1),
}


def real_features() -> list[tuple[list[int], list[int]]]:
    """(ids, token types) of questions with paragraphs, from the odd-numbered articles of SQuAD dev: a test that
    steers development must not look at dev-report."""
    with tarfile.open(SQUAD) as archive:
        name = next(n for n in archive.getnames() if n.endswith("dev-v1.1.json"))
        articles = json.load(archive.extractfile(name))["data"]
    tokenizer = tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(384, strategy="only_second")
    questions = [
        (qa["question"], paragraph["context"])
        for article in articles[0::2]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    step = len(questions) // FEATURES
    encodings = tokenizer.encode_batch(questions[::step][:FEATURES])
    return [(e.ids, e.type_ids) for e in encodings]


class FloatEncoder:
    """BERT in float32, one unpadded sequence at a time, with drop-and-restore."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]
        tensors = safetensors.load_file(folder / "model.safetensors")
        self.w = {name.removeprefix("bert."): tensor.float() for name, tensor in tensors.items()}

    def linear(self, x, name: str):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name: str):
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.eps
        )

    def run(self, ids: list[int], types: list[int], rule: int, values: np.ndarray, keep_cls: int):
        """-> restored (n, H), kept positions per layer."""
        n0 = len(ids)
        x = self.norm(
            self.w["embeddings.word_embeddings.weight"][ids]
            + self.w["embeddings.position_embeddings.weight"][:n0]
            + self.w["embeddings.token_type_embeddings.weight"][types],
            "embeddings.LayerNorm",
        )
        restored, positions, kept = x.clone(), torch.arange(n0), []
        for i in range(self.layers):
            layer = f"encoder.layer.{i}"
            q, k, v = (
                self.linear(x, f"{layer}.attention.self.{part}").unflatten(-1, (self.heads, -1)).transpose(0, 1)
                for part in ("query", "key", "value")
            )
            p = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
            context = (p @ v).transpose(0, 1).flatten(1)
            y = self.norm(
                x + self.linear(context, f"{layer}.attention.output.dense"),
                f"{layer}.attention.output.LayerNorm",
            )
            score = p.sum(dim=(0, 1))
            if keep_cls:
                score[0] = math.inf
            wanted = math.ceil(values[i] * n0 - 1e-6) if rule == raw.RATIO else int(values[i])
            count = min(len(x), max(2, wanted))
            chosen = torch.sort(score, descending=True, stable=True).indices[:count].sort().values
            y, positions = y[chosen], positions[chosen]
            inner = torch.nn.functional.gelu(self.linear(y, f"{layer}.intermediate.dense"))
            x = self.norm(y + self.linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
            restored[positions] = x
            kept.append(positions.tolist())
        return restored.numpy(), kept


@pytest.fixture(scope="module")
def features():
    for needed in (CHECKPOINT / "model.safetensors", SQUAD):
        if not needed.exists():
            pytest.skip(f"needs {needed} (QLA_CHECKPOINT and QLA_DATA say where)")
    return real_features()


@pytest.mark.parametrize("name", CONFIGS)
def test_kept_sets_and_states_agree_with_float(features, name: str) -> None:
    rule, values, keep_cls = CONFIGS[name]
    reference = FloatEncoder(CHECKPOINT)
    engine = _core.Engine(str(raw.default_package()))
    overlaps: dict[str, list[float]] = {"k >= 64": [], "k < 64": []}
    cosines = []
    for ids, types in features:
        batch = (np.array(ids, np.int32), np.array([0, len(ids)]), np.array(types, np.int32))
        got = raw.run(engine, batch, [CONFIGS[name]], want={"last_hidden", "kept"})
        with torch.inference_mode():
            want_hidden, want_kept = reference.run(ids, types, rule, values, keep_cls)
        left_at = np.full((2, len(ids)), len(values))  # the layer that dropped each token, ours and theirs
        for layer, theirs in enumerate(want_kept):
            ours = got["kept"][layer, : got["kept_counts"][layer, 0]].tolist()
            assert len(ours) == len(theirs)
            if len(ours) < len(ids):
                overlaps["k >= 64" if len(ours) >= 64 else "k < 64"].append(
                    len(set(ours) & set(theirs)) / len(ours)
                )
            for side, kept in enumerate((ours, theirs)):
                gone = np.setdiff1d(np.arange(len(ids)), kept)
                left_at[side, gone] = np.minimum(left_at[side, gone], layer)
        same = left_at[0] == left_at[1]
        a, b = got["last_hidden"][same], want_hidden[same]
        cosines.append((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    summary = {key: float(np.mean(value)) for key, value in overlaps.items()}
    cosine = np.concatenate(cosines)
    print(f"{name}: overlap {summary}, cosine {cosine.mean():.5f}")
    assert summary["k >= 64"] >= 0.97
    assert summary["k < 64"] >= 0.90
    assert cosine.mean() >= 0.99
