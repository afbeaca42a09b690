"""The trained model as a plain Hugging Face folder, which transformers and ``qla convert`` load."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

from qla_runtime.checkpoints.config import label_names, task_of_architecture
from qla_runtime.checkpoints.reader import Checkpoint, hugging_face_tensors
from qla_runtime.errors import QlaError
from qla_runtime.model import formats
from qla_runtime.model.float_model import Model
from qla_runtime.model.staging import publish, staging, write_file

_SUFFIXES = {
    "span-qa": "ForQuestionAnswering",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "embedding": "Model",
}
_PROBLEMS = {"single_label": "single_label_classification", "regression": "regression"}
_SENTENCE_FILES = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "config_setfit.json",
)
"""Files that make a folder a sentence encoder or a cross-encoder, or say how its outputs are used."""
_ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Keys of config.json that belong to a cross-encoder's head."""
_HALF_MAX = torch.finfo(torch.float16).max


def export(model: Model, source: Checkpoint, out: Path) -> None:
    """Writes config.json, model.safetensors, and the tokenizer's and pooling's files.

    Weights are written in float16. Those that were trained with roundings stay float32: another rounding before
    would move some of them to another code.

    Args:
        model: the trained model.
        source: where it started from; every other file comes from there.
        out: the folder; it appears in one step, and an older one is replaced in one.

    Raises:
        QlaError: a weight has outgrown float16.
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save

    stored = _half if model.format is None else _whole
    tensors = {name: stored(name, tensor) for name, tensor in hugging_face_tensors(model, source.family).items()}
    if model.task.kind == "embedding":
        # transformers' bare encoder has a pooler that no embedding uses, and warns where it is missing.
        extra = source.tensors("pooler.")
        tensors |= {name: stored(name, tensor) for name, tensor in extra.items()}
    with staging(out) as stage:
        new = stage / "new"
        new.mkdir()
        inner = _copy_companions(source, new)
        write_file(inner / "config.json", _config(model, source))
        write_file(inner / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        publish(new, out)


def _copy_companions(source: Checkpoint, new: Path) -> Path:
    """Copies what stands beside the weights; returns the folder where config and weights belong.

    A model with a head is a plain folder: with a modules.json it would be opened as the sentence encoder that it
    was before.
    """
    root, pooled = source.folder, source.task.kind == "embedding"
    headless = pooled and task_of_architecture(source.config) is None
    dropped = () if headless else ("modules.json",) if _has_own_head(source) else _SENTENCE_FILES
    if pooled and not (root / "modules.json").is_file() and (root.parent / "modules.json").is_file():
        root = root.parent  # sentence-transformers, with the transformer in a folder of its own
    for path in [*root.glob("*"), *root.glob("*/*")] if pooled else root.glob("*"):
        # Weights of any kind, their index and the card do not describe the new model.
        listed = path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json")
        if path.is_file() and listed and not any(fnmatch(path.name, pattern) for pattern in dropped):
            target = new / path.relative_to(root)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    inner = new / source.folder.relative_to(root)
    inner.mkdir(exist_ok=True)
    if not (inner / "tokenizer.json").is_file():
        write_file(inner / "tokenizer.json", source.tokenizer_json.encode())
    return inner


def _config(model: Model, source: Checkpoint) -> bytes:
    config, task = dict(source.config), model.task
    config["max_position_embeddings"] = model.encoder.spec.max_positions + model.encoder.spec.position_offset
    config["architectures"] = [source.family.class_prefix + _SUFFIXES[task.kind]]
    # Stored in half precision, to be computed in float32: transformers takes this key as what to load into.
    config.pop("torch_dtype", None)
    if not _has_own_head(source):
        for key in _ACTIVATION_KEYS:
            config.pop(key, None)
    config["dtype"] = "float32"
    config.pop(formats.KEY, None)
    if model.format is not None:
        config[formats.KEY] = model.format.to_json()
    if task.labels:
        config["id2label"] = {str(i): label for i, label in enumerate(task.labels)}
        config["label2id"] = {label: i for i, label in enumerate(task.labels)}
    if task.kind == "sequence-classification":
        config["problem_type"] = _PROBLEMS[task.problem]
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _has_own_head(source: Checkpoint) -> bool:
    """Whether the trained head is the checkpoint's own, and not a new one."""
    if task_of_architecture(source.config) != source.task.kind:
        return False
    return source.task.kind != "sequence-classification" or label_names(source.config) == source.task.labels


def _half(name: str, tensor: Tensor) -> Tensor:
    largest = tensor.abs().max().item()
    if not largest <= _HALF_MAX:
        raise QlaError(f"{name} has grown to {largest:g}, beyond float16; train with a lower learning rate")
    return tensor.to("cpu", torch.float16).contiguous()


def _whole(name: str, tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
