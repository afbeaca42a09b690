"""What the tests of MiniLM share: a corpus of the tiny tokenizer's words, and short runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import training_tools

from qla_runtime.training import run
from qla_runtime.training.recipes.minilm import MiniLMOptions

LOOP = replace(training_tools.LOOP, steps=4)
V1 = MiniLMOptions(relations="v1", student_layers=2, copy_layers="even", batch_tokens=256)
V2 = MiniLMOptions(
    student_layers=2, student_hidden=128, student_heads=4, student_intermediate=192, relation_heads=8,
    batch_tokens=256,
)  # fmt: skip


def corpus(path: Path, documents: int = 40) -> Path:
    """Documents of one to five lines of 3 to 11 words."""
    path.write_text(
        "\n\n".join(
            "\n".join(
                " ".join(f"w{4 + (d * 7 + i * 3 + j * (1 + d % 5)) % 96}" for j in range(3 + (d + i) % 9))
                for i in range(1 + d % 5)
            )
            for d in range(documents)
        )
    )
    return path


def distil(source, text, out: Path, **changes):
    return run.train(source, text, out, **{"loop": LOOP, "max_length": 24, "progress": False, **changes})
