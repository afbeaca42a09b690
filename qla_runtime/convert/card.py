"""The package's README.md: what the model is, where it comes from, and how near INT8 comes to float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qla_runtime.convert.report import sentence, table
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.spec import EncoderSpec, TaskSpec

_ACTIVATIONS = {
    "per_token": "scale and zero point of each row come from the row itself",
    "static": "scale and zero point of each layer's input come from calibration",
}

_USES = {
    "span-qa": "engine.answer(question, context)",
    "sequence-classification": "engine.classify(texts)",
    "token-classification": "engine.tag(texts)",
    "embedding": "engine.encode(sentences)",
}


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


def write_card(
    *,
    name: str,
    source: str,
    encoder: EncoderSpec,
    task: TaskSpec,
    activations: str,
    algorithm: str,
    configs: Mapping[str, LengthConfig],
    provenance: Provenance,
    report: dict[str, Any],
) -> str:
    """The card as Markdown. It holds no date: the same inputs give the same package."""
    license = provenance.license or "not stated by the checkpoint; ask its authors"
    calibrated = report["calibration_samples"] > 0
    calibration = f"{provenance.calibration_data}; {report['calibration_samples']} samples"
    facts = {
        "Checkpoint": provenance.checkpoint or source,
        "Base model": provenance.base_model,
        "Training data": provenance.training_data,
        "Calibration data": calibration if calibrated else None,
        "Licence and attribution": license,
    }
    family = "RoBERTa" if encoder.family == "roberta" else "BERT"
    unseen = ""
    if calibrated:
        unseen = ", not used for calibration" if report["held_out"] else ", the calibration texts (too few)"
    scales = ["Scales of the weights by neural-compressor, which needs no texts for them."]
    if activations == "static":
        scales = [
            f"Scales by neural-compressor (static INT8, `{algorithm}`), calibrated dense and under each length",
            "config below.",
        ]
    lines = [
        f"# {name}",
        "",
        f"An INT8 package for qla_runtime: a {family}-type encoder for {task.kind}, texts of up to "
        f"{task.max_length} tokens.",
        f"{encoder.layers} layers, hidden {encoder.hidden}, {encoder.heads} heads, feed-forward "
        f"{encoder.intermediate}, vocabulary {encoder.vocab_size:,}.",
        "",
        "```python",
        "from qla_runtime import Engine",
        "",
        f'engine = Engine.from_pretrained("path/to/{name}")',
        _USES[task.kind],
        "```",
        "",
        "## Made from",
        "",
        *(f"- {what}: {value}" for what, value in facts.items() if value),
        "",
        "## Quantization",
        "",
        "Linear layers of the encoder: weights signed 8 bit, one scale per output channel; activations",
        f"unsigned 8 bit, `{activations}`: {_ACTIVATIONS[activations]}.",
        *scales,
        "Word embeddings: signed 8 bit, one scale per row. Attention products: 8 bit, scales found",
        "per sequence at run time. Everything else: float32.",
        *_correction(report["correction_samples"]),
        "",
        f"{sentence(report)}{unseen}:",
        "",
        table(report),
        "",
        length_section(configs),
    ]
    return "\n".join(lines)


def _correction(samples: int) -> list[str]:
    if samples == 0:
        return []
    return [f"The head's bias takes back the mean error of INT8, as measured on {samples} of the texts."]


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
