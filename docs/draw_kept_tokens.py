"""Draws docs/kept-tokens.png from a real run: which tokens of a question and its text each layer keeps.

Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from qla_runtime import Engine

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What did Smeaton use to bind the blocks of granite?"
LENGTHS = ["balanced", "fast"]
COLORS = {"question": "#8a94a6", "text": "#3b6ea8", "answer": "#e07b00"}


def kinds(tokens: list[str], answer: str) -> list[str]:
    """Per token: of the question, of the text, or of the answer."""
    border = tokens.index("[SEP]")
    words = answer.lower().split()
    found = ["question" if i <= border else "text" for i in range(len(tokens))]
    for i in range(border, len(tokens)):
        if tokens[i : i + len(words)] == words:
            found[i : i + len(words)] = ["answer"] * len(words)
    return found


def main() -> None:
    engine = Engine.from_pretrained()
    context = (ROOT / "examples" / "paragraph.txt").read_text()
    figure, panels = plt.subplots(len(LENGTHS), 1, figsize=(10, 5.2), sharex=True)
    for axes, length in zip(panels, LENGTHS, strict=True):
        result = engine.answer(QUESTION, context, length=length, details=True)
        tokens = result["tokens"]
        of = kinds(tokens, result["answer"])
        layers = [np.arange(len(tokens)), *result["kept"]]
        for y, kept in enumerate(layers):
            colors = [COLORS[of[i]] for i in kept]
            axes.bar(kept, 0.72, width=0.85, bottom=y - 0.36, color=colors, linewidth=0)
            axes.text(len(tokens) + 2, y, str(len(kept)), va="center", fontsize=9)
        names = ["all tokens", *(f"layer {i}" for i in range(1, len(layers)))]
        axes.set_yticks(range(len(layers)), names, fontsize=9)
        axes.set_ylim(len(layers) - 0.45, -0.55)
        axes.set_xlim(-1, len(tokens) + 12)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        giga = result["macs"] / 1e9
        title = f"{length}: {giga:.2f} billion multiply-accumulates, answer \u201c{result['answer']}\u201d"
        axes.set_title(title, loc="left", fontsize=10)
        left = " ".join(tokens[i] for i in result["kept"][-1])
        axes.set_xlabel(f"left in layer {len(layers) - 1}: {left}", loc="left", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    figure.legend(handles, COLORS, loc="upper right", ncols=len(COLORS), frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "kept-tokens.png", dpi=110)


if __name__ == "__main__":
    main()
