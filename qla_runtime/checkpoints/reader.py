"""Checkpoints as they come: a Hugging Face folder or hub id, plain or in the sentence-transformers layout.

Everything in a checkpoint is accounted for before it is used: what the package cannot hold is refused where it
would change the results, and named in :attr:`Checkpoint.notes` where it would not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.checkpoints.companions import check_modules, companion_notes
from qla_runtime.checkpoints.config import encoder_spec, position_rows, task_spec
from qla_runtime.checkpoints.config_keys import (
    family_of,
    infer_model_type,
    refuse_other_arithmetic,
    unknown_keys,
    with_defaults,
)
from qla_runtime.checkpoints.json_files import first_line, read_json, read_object
from qla_runtime.checkpoints.pooling import SentenceSpec, sentence_spec
from qla_runtime.checkpoints.sentence_settings import SentenceSettings, chosen_pooling, read_settings
from qla_runtime.checkpoints.tensors import Account, account, canonical_names, hugging_face_tensors, origins
from qla_runtime.checkpoints.tokenizer_files import read_tokenizer
from qla_runtime.checkpoints.transformer_settings import TransformerSettings, transformer_settings
from qla_runtime.checkpoints.weights import FLOATS, WeightFiles
from qla_runtime.errors import InputError
from qla_runtime.families import Family
from qla_runtime.model import formats, limits
from qla_runtime.model.formats import ModelFormat
from qla_runtime.model.spec import EncoderSpec, TaskSpec
from qla_runtime.texts.files import check_regular_files
from qla_runtime.texts.tokenizer import TextRules

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.model.float_model import Model

__all__ = ["Checkpoint", "hugging_face_tensors", "open_checkpoint"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.safetensors", "*vocab.txt", "*.model", "*merges.txt", "README.md", "model_head.pkl")
_HUB_PICKLES = ("*pytorch_model*.bin",)
"""Fetched where a repository has no safetensors."""


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
    config: dict[str, Any]
    """config.json, with transformers' defaults in place of missing keys."""
    weights: WeightFiles
    """Every tensor's name, dtype and shape."""
    account: Account
    """What becomes of each."""
    notes: tuple[str, ...] = ()
    """What the package leaves out, one sentence each; none of it changes what the package computes."""
    text: TextRules = TextRules()
    """What the tokenizer cannot say about texts."""
    settings: SentenceSettings = field(default_factory=SentenceSettings)
    """Prompts and what else sentence-transformers saves beside a model."""
    format: ModelFormat | None = None
    """The roundings that the weights were trained with (``qla train qat``); None for a float checkpoint."""

    @property
    def family(self) -> Family:
        """Whose names and rules the checkpoint follows."""
        return family_of(self.config)

    def load_model(self, *, new_head: bool = False) -> Model:
        """The float32 model in evaluation mode.

        Args:
            new_head: leave the head as PyTorch initializes it, and the pooler too where the checkpoint has
                none: what fine-tuning of a pretrained encoder starts from. Such a checkpoint was opened with
                ``new_head=True``.

        Raises:
            InputError, UnsupportedError: as :meth:`load_state`.
        """
        return self.as_model(self.load_state(new_head=new_head), new_head=new_head)

    def as_model(self, state: Mapping[str, NDArray[np.float32]], *, new_head: bool = False) -> Model:
        """The float32 model of what :meth:`load_state` gave. It shares the memory of the arrays."""
        import torch

        from qla_runtime.model.float_model import Model

        model = Model(self.encoder, self.task)
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        model.load_state_dict(tensors, strict=not new_head, assign=True)
        return model.eval()

    def check_weights(self, *, new_head: bool = False) -> Account:
        """What becomes of every tensor.

        Raises:
            InputError: a tensor that :meth:`load_state` needs is missing or of the wrong shape.
            UnsupportedError: a tensor changes what the model computes, and the engine would leave it out.
        """
        return account(
            self.weights.tensors,
            self.family,
            self.encoder,
            self.task,
            position_rows(self.config),
            new_head=new_head,
        )

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of floats whose names, without wrappers and family, begin so; float32, on the CPU."""
        import torch

        stored = {
            name: old
            for name, old in self.account.stored.items()
            if name.startswith(prefix) and self.weights.tensors[old].dtype in FLOATS
        }
        loaded = self.weights.load(stored.values())
        return {name: torch.from_numpy(loaded[old].copy()) for name, old in stored.items()}

    def load_state(self, *, new_head: bool = False) -> dict[str, NDArray[np.float32]]:
        """Every parameter by our name: what a state dict of :class:`~qla_runtime.model.float_model.Model` holds.

        Args:
            new_head: leave out the head, and the pooler too where the checkpoint has none.

        Raises:
            InputError: a tensor is missing, has the wrong shape, or holds NaN or infinite values.
            UnsupportedError: as :meth:`check_weights`.
        """
        self.check_weights(new_head=new_head)
        found = origins(self.family, self.encoder, self.task, position_rows(self.config))
        if new_head:
            optional = {f"pooler.{kind}" for kind in ("weight", "bias")}
            found = {
                ours: origin
                for ours, origin in found.items()
                if not ours.startswith("head.")
                and (ours not in optional or origin.parts[0] in self.account.stored)
            }
        stored = self.account.stored
        loaded = self.weights.load([stored[part] for origin in found.values() for part in origin.parts])
        state = {}
        for ours, origin in found.items():
            tensor = np.concatenate([loaded[stored[part]] for part in origin.parts])
            if not np.isfinite(tensor).all():
                raise InputError(f"the weights: {stored[origin.parts[0]]!r} holds NaN or infinite values")
            state[ours] = tensor
        positions = "encoder.embeddings.position.weight"
        kept = self.encoder.max_positions + self.encoder.position_offset
        state[positions] = state[positions][:kept].copy()
        return state


def open_checkpoint(
    checkpoint: str | Path,
    *,
    task: str | None = None,
    max_length: int | None = None,
    pooling: str | None = None,
    activation: str | None = None,
    new_head: bool = False,
) -> Checkpoint:
    """Finds a checkpoint, reads everything but its weights' values, and accounts for all that is in it.

    Args:
        checkpoint: a folder, or a hub id such as ``deepset/minilm-uncased-squad2``.
        task: a task kind of ``docs/file-format.md``; None reads it from the checkpoint.
        max_length: tokens a text is cut at; None takes the checkpoint's limit.
        pooling: ``mean`` or ``cls``, for a sentence encoder whose folder does not say; None takes the mean there.
        activation: of a cross-encoder's score; None takes the checkpoint's.
        new_head: the head may be missing, or be another task's: it will be replaced.

    Raises:
        InputError: nothing there, a file in it is damaged, or its files do not belong together.
        UnsupportedError: the runtime cannot run this architecture, or would leave out what changes the results.
    """
    root = _find(checkpoint)
    source = root.resolve().name if Path(checkpoint).is_dir() else str(checkpoint)
    check_regular_files(root, (*_HUB_FILES, *_HUB_PICKLES))
    left_beside = companion_notes(root, source, task)
    folder, sentence, how = _sentence_layout(root)
    sentence = chosen_pooling(sentence, pooling, task)
    config = read_object(folder / "config.json")
    refuse_other_arithmetic(config)  # before the weights, of which such a config may have a kind of its own
    weights = WeightFiles(folder, source)
    config["model_type"] = infer_model_type(config, canonical_names(weights.tensors))
    encoder = encoder_spec(config, max_length=max_length)
    tokenizer = read_tokenizer(folder, config, how)
    spec = task_spec(
        config,
        encoder,
        task=task,
        max_length=max_length,
        sentence=sentence,
        tokenizer_limit=tokenizer.limit,
    )
    settings = read_settings(root, config, spec, encoder.hidden, activation)
    rows = position_rows(config)
    format = ModelFormat.from_json(config[formats.KEY], encoder.layers) if formats.KEY in config else None
    accounted = account(weights.tensors, family_of(config), encoder, spec, rows, new_head=new_head)
    card = root / "README.md"
    return Checkpoint(
        source=source,
        folder=folder,
        encoder=encoder,
        task=settings.of_task(spec),
        tokenizer_json=tokenizer.json,
        text=tokenizer.rules,
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
        config=with_defaults(config),
        weights=weights,
        account=accounted,
        notes=(*left_beside, *_config_notes(config, encoder, rows), *_format_notes(format), *accounted.notes),
        settings=settings,
        format=format,
    )


def _config_notes(config: dict[str, Any], encoder: EncoderSpec, rows: int) -> list[str]:
    notes = []
    unknown = unknown_keys(config)
    if unknown:
        shown = ", ".join(key if key.isprintable() else ascii(key) for key in unknown[:20])
        notes.append(
            f"config.json: unknown keys, not used: {shown}{', ...' if len(unknown) > 20 else ''}. If one of "
            "them changes what the model computes, the package computes something else"
        )
    positions = rows - encoder.position_offset
    if positions > encoder.max_positions:
        notes.append(
            f"positions: the checkpoint has {positions}, the package keeps the first {encoder.max_positions} "
            f"(at most {limits.MAX_POSITIONS}; --max-length says how many)"
        )
    return notes


def _format_notes(format: ModelFormat | None) -> list[str]:
    if format is None or format.quantizers == "engine":
        return []
    return [
        f"config.json: {formats.KEY}: activations were rounded as in the {format.quantizers}, with one scale per "
        "tensor. The engine rounds them more finely, and so computes something else than was trained"
    ]


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
        folder = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_HUB_PICKLES]))
        return folder
    except Exception as error:  # the hub client raises many kinds; each means "not available"
        raise InputError(
            f"checkpoint {name!r} is no folder here, and the hub did not give it: {first_line(error)}. "
            "Check the name and the network, or pass a folder"
        ) from error


def _sentence_layout(root: Path) -> tuple[Path, SentenceSpec | None, TransformerSettings]:
    """The transformer's folder, the pooling and the text settings, where ``root`` has modules.json."""
    listing = root / "modules.json"
    if not listing.is_file():
        return root, None, TransformerSettings()
    modules = read_json(listing)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError("modules.json must hold a list of modules")
    pooling = [module for module in modules if str(module.get("type", "")).endswith("Pooling")]
    if not modules:
        return root, None, TransformerSettings()
    check_modules(modules)
    transformer = _inside(root, modules[0])
    settings = transformer_settings(transformer)
    if not pooling:  # a cross-encoder also has the file, and no pooling
        return transformer, None, settings
    spec = sentence_spec(
        modules,
        read_object(_inside(root, pooling[0]) / "config.json"),
        {"max_seq_length": settings.max_length},
    )
    return transformer, spec, settings


def _inside(root: Path, module: dict[str, Any]) -> Path:
    folder = (root / str(module.get("path", ""))).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise InputError(f"modules.json: path {module.get('path')!r} leaves the checkpoint's folder")
    return folder
