"""What padding's vote changes: docs/architecture.md, "Length semantics".

The float model drops tokens of 200 SQuAD dev features twice, down to the same counts: once padded to 384,
where padding rows are queries like any other (the original implementation), once without padding (ours).
Needs what tests/test_against_float.py needs.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_against_float import CHECKPOINT, FloatEncoder, real_features  # noqa: E402

PADDED = 384
MAX_ANSWER = 30


def run(
    encoder: FloatEncoder, ids: list[int], types: list[int], counts: list[int], length: int
) -> tuple[torch.Tensor, list[set[int]]]:
    """Restored real rows and the real tokens that each layer kept, with the input padded to `length`."""
    w, n0 = encoder.w, len(ids)
    padding = [0] * (length - n0)
    x = w["embeddings.word_embeddings.weight"][ids + padding]
    x = x + w["embeddings.position_embeddings.weight"][:length]
    x = encoder.norm(x + w["embeddings.token_type_embeddings.weight"][types + padding], "embeddings.LayerNorm")
    restored, positions, kept = x.clone(), torch.arange(length), []
    for i, count in enumerate(counts):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            encoder.linear(x, f"{layer}.attention.self.{part}").unflatten(-1, (encoder.heads, -1))
            for part in ("query", "key", "value")
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        p = torch.softmax(scores.masked_fill(positions >= n0, -math.inf), dim=-1)
        context = torch.einsum("hqk,khd->qhd", p, v).flatten(1)
        y = encoder.linear(context, f"{layer}.attention.output.dense")
        y = encoder.norm(x + y, f"{layer}.attention.output.LayerNorm")
        votes = p.sum(dim=(0, 1))
        votes[0] = math.inf
        chosen = torch.sort(votes, descending=True, stable=True).indices[:count].sort().values
        y, positions = y[chosen], positions[chosen]
        inner = torch.nn.functional.gelu(encoder.linear(y, f"{layer}.intermediate.dense"))
        x = encoder.norm(y + encoder.linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        restored[positions] = x
        kept.append(set(positions[positions < n0].tolist()))
    return restored[:n0], kept


def best_span(encoder: FloatEncoder, hidden: torch.Tensor, types: list[int]) -> tuple[int, int]:
    logits = encoder.linear(hidden, "qa_outputs")
    start, end = logits.masked_fill(torch.tensor(types)[:, None] == 0, -math.inf).unbind(1)
    allowed = torch.ones(len(types), len(types)).triu().tril(MAX_ANSWER - 1) > 0
    best = int((start[:, None] + end).masked_fill(~allowed, -math.inf).argmax())
    return divmod(best, len(types))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="315,251,242,159,142,33", help="default: %(default)s")
    counts = [int(count) for count in parser.parse_args().counts.split(",")]
    encoder = FloatEncoder(CHECKPOINT)
    overlaps: list[list[float]] = [[] for _ in counts]
    same_spans = []
    features = real_features()
    with torch.inference_mode():
        for ids, types in features:
            theirs, their_kept = run(encoder, ids, types, counts, PADDED)
            ours, our_kept = run(encoder, ids, types, counts, len(ids))
            for layer, (a, b) in enumerate(zip(their_kept, our_kept, strict=True)):
                assert len(a) == len(b)
                if len(b) < len(ids):
                    overlaps[layer].append(len(a & b) / len(b))
            same_spans.append(best_span(encoder, theirs, types) == best_span(encoder, ours, types))
    print(f"{len(features)} features, {np.mean([len(ids) for ids, _ in features]):.0f} tokens on average")
    for layer, (count, values) in enumerate(zip(counts, overlaps, strict=True), 1):
        shown = f"{np.mean(values):.3f} of the kept tokens are the same" if values else "nobody drops"
        print(f"layer {layer}: at most {count} tokens, {len(values)} features have dropped some; {shown}")
    print(f"same answer span: {np.mean(same_spans):.3f}")


if __name__ == "__main__":
    main()
