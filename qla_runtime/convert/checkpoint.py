"""Checkpoints as they come: a Hugging Face folder or hub id, plain or in the sentence-transformers layout.

Only safetensors are read. A pickle (``pytorch_model.bin``) runs code when it is loaded, so it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from qla_runtime.convert.sentence_settings import SentenceSettings, chosen_pooling, read_settings
from qla_runtime.convert.spec import (
    EncoderSpec,
    SentenceSpec,
    TaskSpec,
    encoder_spec,
    sentence_spec,
    task_spec,
)
from qla_runtime.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.modeling import Model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt", "*.model", "merges.txt", "README.md")

# Ours -> theirs, without the family prefix. Several names on the right are stacked along the rows.
_EMBEDDING_NAMES = {
    "embeddings.word": ("embeddings.word_embeddings",),
    "embeddings.position": ("embeddings.position_embeddings",),
    "embeddings.token_type": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
}
_LAYER_NAMES = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "ffn_in": ("intermediate.dense",),
    "ffn_out": ("output.dense",),
    "ffn_norm": ("output.LayerNorm",),
}
# (family, task kind) -> ours -> theirs; "pooler.dense" belongs to the encoder's prefix, the others do not.
_HEAD_NAMES = {
    ("bert", "span-qa"): {"head": "qa_outputs"},
    ("bert", "token-classification"): {"head": "classifier"},
    ("bert", "sequence-classification"): {"pooler": "bert.pooler.dense", "head": "classifier"},
    ("roberta", "span-qa"): {"head": "qa_outputs"},
    ("roberta", "token-classification"): {"head": "classifier"},
    ("roberta", "sequence-classification"): {"pooler": "classifier.dense", "head": "classifier.out_proj"},
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose specs passed every check; its weights are still on disk."""

    source: str
    """What the caller named: the folder's name or the hub id; fit to be printed in a card."""
    folder: Path
    """Where config.json and the weights lie."""
    encoder: EncoderSpec
    task: TaskSpec
    tokenizer_json: str
    """The tokenizer, truncation and padding off."""
    card: str
    """README.md of the checkpoint, or an empty string."""
    settings: SentenceSettings = field(default_factory=SentenceSettings)
    """Prompts and what else sentence-transformers saves beside a model."""

    def load_model(self, *, new_head: bool = False) -> Model:
        """The float32 model in evaluation mode.

        Args:
            new_head: leave the head as PyTorch initializes it, and the pooler too where the checkpoint has
                none: what fine-tuning of a pretrained encoder starts from.

        Raises:
            InputError: a tensor is missing or has the wrong shape.
            UnsupportedError: the weights are a pickle.
        """
        from qla_runtime.modeling import Model

        model = Model(self.encoder, self.task)
        state = _translate(
            read_weights(self.folder),
            model,
            self.encoder,
            self.task,
            skip=("head",) if new_head else (),
            optional=("pooler",) if new_head else (),
        )
        model.load_state_dict(state, strict=not new_head)
        return model.eval()


def open_checkpoint(
    checkpoint: str | Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    pooling: str | None = None,
    activation: str | None = None,
) -> Checkpoint:
    """Finds a checkpoint and reads everything but its weights.

    Args:
        checkpoint: a folder, or a hub id such as ``deepset/minilm-uncased-squad2``.
        task: a task kind of ``docs/file-format.md``; None reads it from the checkpoint.
        max_length: tokens a text is cut at; None takes the checkpoint's limit.
        pooling: ``mean`` or ``cls``, for a sentence encoder whose folder does not say; None takes the mean there.
        activation: of a cross-encoder's score; None takes the checkpoint's.

    Raises:
        InputError: nothing there, or a file in it is damaged.
        UnsupportedError: the runtime cannot run this architecture.
    """
    root = _find(checkpoint)
    folder, sentence = _sentence_layout(root)
    sentence = chosen_pooling(sentence, pooling, task)
    config = _read_object(folder / "config.json")
    encoder = encoder_spec(config)
    tokenizer_config = folder / "tokenizer_config.json"
    limit = _read_object(tokenizer_config).get("model_max_length") if tokenizer_config.is_file() else None
    spec = task_spec(
        config,
        encoder,
        task=task,
        max_length=max_length,
        sentence=sentence,
        tokenizer_limit=limit if isinstance(limit, int) else None,
    )
    settings = read_settings(root, config, spec, encoder.hidden, activation)
    _weight_files(folder)  # refuse a pickle now, not after reading the texts
    card = root / "README.md"
    return Checkpoint(
        source=root.resolve().name if Path(checkpoint).is_dir() else str(checkpoint),
        folder=folder,
        encoder=encoder,
        task=settings.of_task(spec),
        tokenizer_json=_tokenizer_json(folder, encoder.vocab_size),
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
        settings=settings,
    )


def _find(checkpoint: str | Path) -> Path:
    path = Path(checkpoint)
    if path.is_dir():
        return path
    name = str(checkpoint)
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise InputError(f"checkpoint {name!r} is neither a folder nor a hub id (name or owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"checkpoint {name!r} is no folder here, and fetching it from the hub needs huggingface_hub. "
            "Run: pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the hub client raises many kinds; each means "not available"
        raise InputError(
            f"checkpoint {name!r} is no folder here, and the hub did not give it: {_first_line(error)}. "
            "Check the name and the network, or pass a folder"
        ) from error


def _sentence_layout(root: Path) -> tuple[Path, SentenceSpec | None]:
    """The transformer's folder and the pooling, when ``root`` has the sentence-transformers layout."""
    listing = root / "modules.json"
    if not listing.is_file():
        return root, None
    modules = _read_json(listing)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError("modules.json must hold a list of modules")
    pooling = [module for module in modules if str(module.get("type", "")).endswith("Pooling")]
    if not pooling:  # a cross-encoder also has the file, and no pooling
        return root, None
    transformer = _inside(root, modules[0])
    settings = transformer / "sentence_bert_config.json"
    spec = sentence_spec(
        modules,
        _read_object(_inside(root, pooling[0]) / "config.json"),
        _read_object(settings) if settings.is_file() else {},
    )
    return transformer, spec


def _inside(root: Path, module: dict[str, Any]) -> Path:
    folder = (root / str(module.get("path", ""))).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise InputError(f"modules.json: path {module.get('path')!r} leaves the checkpoint's folder")
    return folder


def _tokenizer_json(folder: Path, vocab_size: int) -> str:
    """tokenizer.json with truncation and padding off; made by transformers where only a vocabulary is."""
    path = folder / "tokenizer.json"
    if path.is_file():
        tokenizer = _read_object(path)
    else:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
            tokenizer = json.loads(loaded.backend_tokenizer.to_str())
        except Exception as error:  # transformers raises many kinds for a folder without a tokenizer
            raise InputError(
                f"{folder.name} holds no tokenizer.json and none can be made from it: {_first_line(error)}. "
                "Save the tokenizer next to the weights"
            ) from error
    # Texts are cut by the engine, which reports it; padding never exists.
    tokenizer["truncation"] = tokenizer["padding"] = None
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    try:
        largest = max(Tokenizer.from_str(text).get_vocab().values(), default=0)
    except Exception as error:  # the Rust side raises Exception itself
        raise InputError(f"tokenizer.json: {_first_line(error)}") from error
    if largest >= vocab_size:
        raise InputError(
            f"tokenizer.json knows token id {largest}, but config.json's vocab_size is {vocab_size}; "
            "resize the checkpoint's embeddings or give the tokenizer it was trained with"
        )
    return text


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, whole or in shards."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = _read_object(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) and "/" not in name for name in names):
            raise InputError("model.safetensors.index.json: weight_map must map tensors to files beside it")
        return [folder / name for name in names]
    pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    if pickles:
        raise UnsupportedError(
            f"{folder.name}: weights come as {pickles[0]}, a pickle, which can run code when loaded; only "
            "model.safetensors is read. Where you trust the file, load it with transformers and save it "
            "again with save_pretrained()"
        )
    raise InputError(f"{folder.name}: no model.safetensors in the folder; it holds no weights")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, as stored, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path.name}: {_first_line(error)}") from error
    return tensors


def hugging_face_tensors(model: Model) -> dict[str, Tensor]:
    """The model's float32 tensors under Hugging Face's names, as a checkpoint for its task has them."""
    encoder, task = model.encoder.spec, model.task
    names = _names(encoder, task, "" if task.kind == "embedding" else f"{encoder.family}.")
    tensors = {}
    for name, tensor in model.state_dict().items():
        ours, kind = name.rsplit(".", 1)
        parts = tensor.detach().chunk(len(names[ours]))
        tensors |= {f"{theirs}.{kind}": part for theirs, part in zip(names[ours], parts, strict=True)}
    return tensors


def _names(encoder: EncoderSpec, task: TaskSpec, prefix: str) -> dict[str, list[str]]:
    """Our module names -> theirs; several of theirs are stacked along the rows."""
    names = {f"encoder.{ours}": [prefix + name for name in theirs] for ours, theirs in _EMBEDDING_NAMES.items()}
    for i in range(encoder.layers):
        for ours, theirs in _LAYER_NAMES.items():
            names[f"encoder.layers.{i}.{ours}"] = [f"{prefix}encoder.layer.{i}.{name}" for name in theirs]
    for ours, name in _HEAD_NAMES.get((encoder.family, task.kind), {}).items():
        names[ours] = [name]
    return names


def _translate(
    tensors: dict[str, Tensor],
    model: Model,
    encoder: EncoderSpec,
    task: TaskSpec,
    *,
    skip: Collection[str] = (),
    optional: Collection[str] = (),
) -> dict[str, Tensor]:
    """Hugging Face tensors under our names, float32, checked against the model's shapes.

    Modules in ``skip`` are left out; those in ``optional`` where the checkpoint lacks them.
    """
    import torch

    # Checkpoints that began in TensorFlow call a norm's parameters gamma and beta.
    tensors = {
        re.sub(
            r"LayerNorm\.(gamma|beta)$",
            lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]],
            name,
        ): t
        for name, t in tensors.items()
    }
    prefix = f"{encoder.family}." if f"{encoder.family}.embeddings.word_embeddings.weight" in tensors else ""
    names = _names(encoder, task, prefix)

    state = {}
    for name, parameter in model.state_dict().items():
        ours, kind = name.rsplit(".", 1)
        if ours in skip or (ours in optional and f"{names[ours][0]}.{kind}" not in tensors):
            continue
        parts = [f"{theirs}.{kind}" for theirs in names[ours]]
        for part in parts:
            if part not in tensors:
                raise InputError(
                    f"model.safetensors: tensor {part!r} is missing; a {task.kind} checkpoint has it. "
                    "Pass the task this checkpoint was trained for"
                )
        tensor = torch.cat([tensors[part].to(torch.float32) for part in parts])
        if tensor.shape != parameter.shape:
            raise InputError(
                f"model.safetensors: {parts[0]!r} gives shape {tuple(tensor.shape)}, but config.json asks "
                f"for {tuple(parameter.shape)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"model.safetensors: {parts[0]!r} holds NaN or infinite values")
        state[name] = tensor
    return state


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path.name} is missing from {path.parent.name!r}; is this a checkpoint folder?"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not readable JSON: {_first_line(error)}") from error


def _read_object(path: Path) -> dict[str, Any]:
    value = _read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold a JSON object, not a {type(value).__name__}")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
