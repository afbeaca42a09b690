"""Results as plain text, for the commands that print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BAR = 40
"""The length of a bar for all tokens, in characters."""


def answer(result: dict[str, Any], *, time: str, show_kept: bool, block: str) -> str:
    """The text for a result of ``Engine.answer`` with ``details``.

    Args:
        result: the result.
        time: how long it took, in words.
        show_kept: whether to draw the tokens that each layer keeps.
        block: the character that bars are drawn with.
    """
    counts = [len(positions) for positions in result["kept"]]
    tokens = result["tokens"]
    windows = f", best of {result['windows']} windows" if result["windows"] > 1 else ""
    budget = {None: "", True: ", within the budget", False: ", over the budget"}[result["budget_met"]]
    measured = result["accuracy"]
    figure = f", {measured['metric']} {measured['value']:g} on {one_line(measured['data'])}" if measured else ""
    lines = [
        "(no answer)" if result["no_answer"] else result["answer"],
        f"  score   {result['score']:.4f}",
        f"  range   {_range(result)} of the context{windows}",
        f"  length  {result['length']}{figure}{budget}",
        f"  kept    {' '.join(map(str, counts))} of {len(tokens)} tokens, layer by layer",
        f"  cost    {result['macs']:,} MACs",
        f"  time    {time}",
    ]
    for entry in result.get("answers", [])[1:]:
        lines.append(f"  also    {entry['score']:.4f}  {entry['answer'] or '(no answer)'}  ({_range(entry)})")
    if show_kept:
        lines += ["", *kept_bars(counts, len(tokens), block)]
        lines.append(f"  read by the last layer: {' '.join(tokens[i] for i in result['kept'][-1])}")
    return "\n".join(lines)


def _range(entry: dict[str, Any]) -> str:
    """The place of an answer in the context, in words."""
    return f"characters {entry['start']} to {entry['end']}" if entry["answer"] else "no characters"


def kept_bars(counts: Sequence[int], total: int, block: str) -> list[str]:
    """One line per layer: the number of tokens that it keeps of ``total``, and a bar of ``block``."""
    width = len(str(total))
    return [
        f"  layer {layer:<2} {count:>{width}} {block * max(1, round(BAR * count / total))}"
        for layer, count in enumerate(counts, 1)
    ]


def vector(row: Sequence[float], shown: int = 6) -> str:
    """The beginning of an embedding."""
    head = ", ".join(f"{value:.4f}" for value in row[:shown])
    return f"[{head}{', ...' if len(row) > shown else ''}] ({len(row)} numbers)"


def one_line(text: str, width: int = 60) -> str:
    """A text on one line, shortened."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."
