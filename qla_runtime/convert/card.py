"""The package's README.md: what the model is, where it comes from, and how near it comes to that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qla_runtime.checkpoints.reader import Checkpoint
from qla_runtime.convert.report import sentence, table
from qla_runtime.lengths.configs import LengthConfig
from qla_runtime.model.card import Provenance, length_section, weights_in_words, words_in_words

_ACTIVATIONS = {
    "per_token": "scale and zero point of each row come from the row itself",
    "static": "scale and zero point of each layer's input come from calibration",
}

_NOT_COMPARED = "Not compared with the float32 model: that needs torch, which was not installed."

_USES = {
    "span-qa": "engine.answer(question, context)",
    "sequence-classification": "engine.classify(texts)",
    "token-classification": "engine.tag(texts)",
    "embedding": "engine.encode(sentences)",
}


def write_card(
    *,
    config: Mapping[str, Any],
    source: Checkpoint,
    activations: str,
    scales: str,
    algorithm: str,
    configs: Mapping[str, LengthConfig],
    provenance: Provenance,
    report: dict[str, Any],
) -> str:
    """The card as Markdown. It holds no date: the same inputs give the same package."""
    name, encoder, task = config["name"], source.encoder, source.task
    license = provenance.license or "not stated by the checkpoint; ask its authors"
    calibrated = report["calibration_samples"] > 0
    calibration = f"{provenance.calibration_data}; {report['calibration_samples']} samples"
    facts = {
        "Checkpoint": provenance.checkpoint or source.source,
        "Base model": provenance.base_model,
        "Training data": provenance.training_data,
        "Calibration data": calibration if calibrated else None,
        "Licence and attribution": license,
    }
    unseen = ""
    if calibrated:
        unseen = ", not used for calibration" if report["held_out"] else ", the calibration texts (too few)"
    how = ["Scales of the weights by neural-compressor, which needs no texts for them."]
    if scales == "max-abs":
        how = ["Scales of the weights by the largest of each output channel, as neural-compressor gives them."]
    elif scales == "trained":
        how = ["The scales are those that the weights were trained with (quantization-aware training)."]
    elif activations == "static":
        how = [
            f"Scales by neural-compressor (static INT8, `{algorithm}`), calibrated dense and under each length",
            "config below.",
        ]
    lines = [
        f"# {name}",
        "",
        f"A package for qla_runtime: a {source.family.title}-type encoder for {task.kind}, texts of up to "
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
        f"Linear layers of the encoder: weights {weights_in_words(config)}, one scale per output channel; "
        "activations",
        f"unsigned 8 bit, `{activations}`: {_ACTIVATIONS[activations]}.",
        *how,
        f"Word embeddings: {words_in_words(config)}, one scale per row. Attention products: 8 bit, scales found",
        "per sequence at run time. Everything else: float32.",
        *_correction(report["correction_samples"]),
        "",
        *([f"{sentence(report)}{unseen}:", "", table(report)] if report["modes"] else [_NOT_COMPARED]),
        "",
        length_section(configs),
    ]
    return "\n".join(lines)


def _correction(samples: int) -> list[str]:
    if samples == 0:
        return []
    return [f"The head's bias takes back the mean error of INT8, as measured on {samples} of the texts."]
