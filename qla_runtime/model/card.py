"""The parts of a model card (README.md) that more than one writer knows: where a model is from, its lengths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qla_runtime.lengths.configs import LengthConfig

LENGTH_HEADING = "## Length configs"


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from; what is None is taken from the checkpoint's own card, or left out."""

    license: str | None = None
    checkpoint: str | None = None
    base_model: str | None = None
    training_data: str | None = None
    calibration_data: str | None = None

    def completed(self, checkpoint_card: str) -> Provenance:
        """Fills gaps from the front matter of a checkpoint's README.md."""
        found = front_matter(checkpoint_card)
        return Provenance(
            license=self.license or found.get("license"),
            checkpoint=self.checkpoint,
            base_model=self.base_model or found.get("base_model"),
            training_data=self.training_data or found.get("datasets"),
            calibration_data=self.calibration_data,
        )


def front_matter(card: str) -> dict[str, str]:
    """The YAML block at a card's head, as cards use it: ``key: value``, and ``key:`` with ``- item`` lines.

    Lists come back joined with commas; nested mappings are skipped.
    """
    block = re.match(r"---\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    found: dict[str, list[str]] = {}
    key = None
    for line in block[1].splitlines() if block else []:
        entry = re.match(r"([\w-]+):\s*(.*)$", line)
        item = re.match(r"\s*- ([^:]+)$", line)
        if entry:
            key = entry[1]
            found[key] = [entry[2]] if entry[2] else []
        elif item and key:
            found[key].append(item[1])
    return {key: ", ".join(value.strip(" \"'") for value in values) for key, values in found.items() if values}


IN_FULL = {"w8a8": "signed 8 bit", "w2a8": "ternary (2 bit)"}
IN_SHORT = {"w8a8": "int8", "w2a8": "ternary"}
"""How a package stores weights, by the type of a linear layer."""


def weights_in_words(config: Mapping[str, Any], words: Mapping[str, str] = IN_FULL) -> str:
    """How a package's linear layers store their weights, by its ``config.json``: all in one way, or how many in
    which."""
    count = Counter(linear["type"] for layer in config["linears"] for linear in layer.values())
    if len(count) == 1:
        return words[next(iter(count))]
    return " and ".join(f"{words[type]} in {count[type]} of {count.total()}" for type in words if count[type])


def words_in_words(config: Mapping[str, Any]) -> str:
    """How a package stores its word embeddings, by its ``config.json``."""
    return {"s8": "signed 8 bit", "ternary": "ternary (2 bit)"}[config["encoder"].get("word_embeddings", "s8")]


def length_section(configs: Mapping[str, LengthConfig]) -> str:
    """The card's part on length configs."""
    lines = [
        LENGTH_HEADING,
        "",
        "What each layer keeps: a share of the sequence's own length (`ratio`) or a token count (`tokens`).",
        "",
        "| name | rule | per layer |",
        "|---|---|---|",
        *(f"| {name} | {c.rule} | {', '.join(f'{v:.6g}' for v in c.values)} |" for name, c in configs.items()),
        "",
        "All but `full` cost accuracy, most of all with a model that was not trained to drop tokens: measure",
        "them on data of yours before use.",
        "",
    ]
    return "\n".join(lines)


def replace_length_section(card: str, configs: Mapping[str, LengthConfig]) -> str:
    """A card with other length configs; one without that part, written by hand, stays as it is."""
    head, heading, tail = card.partition(LENGTH_HEADING)
    if not heading:
        return card
    _, following, rest = tail.partition("\n## ")
    return head + length_section(configs) + following + rest
