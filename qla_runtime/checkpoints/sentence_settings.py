"""What sentence-transformers saves beside a model and obeys: pooling, prompts, similarity, width, activation.

Read as sentence-transformers 6 reads it, so that a package gives what the folder gives there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qla_runtime.activations import ACTIVATIONS
from qla_runtime.checkpoints.json_files import optional_object
from qla_runtime.checkpoints.pooling import SentenceSpec
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.model.limits import POOLINGS
from qla_runtime.model.spec import TaskSpec
from qla_runtime.vectors import SIMILARITIES

SETTINGS_FILE = "config_sentence_transformers.json"

_MODEL_TYPES = {"embedding": "SentenceTransformer", "sequence-classification": "CrossEncoder"}
_ROLES = {"embedding": ("query", "document"), "sequence-classification": ()}
"""Prompt names that sentence-transformers gives every model of a kind, with an empty text."""

_DIMS_OF_CARD = re.compile(r'"matryoshka_dims":\s*\[([\d,\s]{1,1000})\]')

_TORCH_CLASSES = {
    "Identity": "identity", "Sigmoid": "sigmoid", "Tanh": "tanh", "ReLU": "relu", "ReLU6": "relu6",
    "LeakyReLU": "leaky_relu", "ELU": "elu", "GELU": "gelu", "SiLU": "silu", "Softplus": "softplus",
    "Softsign": "softsign", "LogSigmoid": "log_sigmoid", "Hardsigmoid": "hard_sigmoid", "Hardtanh": "hard_tanh",
}  # fmt: skip


@dataclass(frozen=True)
class SentenceSettings:
    """Settings of a checkpoint that are the caller's business and not the encoder's.

    Attributes:
        prompts: name -> text to put before an input.
        default_prompt: the name of the one that is used where the caller asks for none.
        similarity: how vectors are compared, one of :data:`qla_runtime.vectors.SIMILARITIES`.
        truncate_dim: how many leading numbers of a vector ``encode`` gives.
        matryoshka_dims: widths that vectors were trained to be cut at, largest first.
        activation: what makes a cross-encoder's score of its logit, one of
            :data:`qla_runtime.activations.ACTIVATIONS`.
        notes: what was not used, one sentence each.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None
    truncate_dim: int | None = None
    matryoshka_dims: tuple[int, ...] = ()
    activation: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The keys that they add to the package's ``config.json``."""
        found: dict[str, Any] = {"prompts": dict(self.prompts)} if self.prompts else {}
        return found if self.default_prompt is None else found | {"default_prompt": self.default_prompt}

    def of_task(self, task: TaskSpec) -> TaskSpec:
        """The task with what belongs to it."""
        return dataclasses.replace(
            task,
            similarity=self.similarity,
            truncate_dim=self.truncate_dim,
            matryoshka_dims=self.matryoshka_dims,
            activation=self.activation,
        )


def chosen_pooling(sentence: SentenceSpec | None, pooling: str | None, task: str | None) -> SentenceSpec | None:
    """The pooling of the folder, or the one that the caller asks for where the folder names none.

    Args:
        sentence: as the folder's modules.json says; None where it has no pooling.
        pooling: what the caller asks for; None for nothing.
        task: the task that the caller asks for.

    Raises:
        InputError: an unknown pooling, one that contradicts the folder, or one for another task.
    """
    if pooling is None:
        return sentence
    if pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
    if task not in (None, "embedding"):
        raise InputError(f"pooling is {pooling!r}, and the task is {task}, which pools nothing; leave pooling out")
    if sentence is None:
        return SentenceSpec(pooling, normalize=False, max_length=None)
    if sentence.pooling != pooling:
        raise InputError(
            f"pooling is {pooling!r}, and the checkpoint's modules.json says {sentence.pooling}, which it was "
            "trained with; leave pooling out, or delete modules.json where it is wrong"
        )
    return sentence


def read_settings(
    root: Path, config: Mapping[str, Any], task: TaskSpec, hidden: int, activation: str | None = None
) -> SentenceSettings:
    """What sentence-transformers would obey when it opens the folder for this task.

    Args:
        root: the checkpoint's folder, with ``modules.json`` if it has one.
        config: the transformer's ``config.json``.
        task: what the package is for.
        hidden: numbers of a vector.
        activation: what the caller asks for, in place of the checkpoint's.

    Raises:
        InputError: a setting of the wrong type, or an activation for a model that ranks nothing.
        UnsupportedError: an activation that the engine does not have.
    """
    cross_encoder = task.kind == "sequence-classification" and len(task.labels) == 1
    if activation is not None:
        _check_activation(activation, cross_encoder)
    if task.kind not in _MODEL_TYPES:
        return SentenceSettings()
    saved, notes = _saved(root, task.kind)
    prompts, default_prompt = _prompts(saved, task.kind)
    if cross_encoder and activation is None:
        activation, more = _activation(saved, config)
        notes += more
    embedding = task.kind == "embedding"
    return SentenceSettings(
        prompts=prompts,
        default_prompt=default_prompt,
        similarity=_similarity(saved) if embedding else None,
        truncate_dim=_truncate_dim(saved, hidden) if embedding else None,
        matryoshka_dims=_matryoshka_dims(root, config, hidden) if embedding else (),
        activation=activation,
        notes=tuple(notes),
    )


def _saved(root: Path, kind: str) -> tuple[dict[str, Any], list[str]]:
    """config_sentence_transformers.json where sentence-transformers reads it, and what to say where not."""
    saved = optional_object(root / SETTINGS_FILE)
    owner = saved.get("model_type", "SentenceTransformer")
    reason = None
    if not (root / "modules.json").is_file():
        reason = "there is no modules.json beside it"
    elif owner != _MODEL_TYPES[kind]:
        reason = f"it belongs to a {owner}, and the package is a {_MODEL_TYPES[kind]}"
    if reason is None:
        return saved, []
    keys = [key for key in ("prompts", "default_prompt_name", "truncate_dim", "activation_fn") if saved.get(key)]
    # An empty text for query and document is what every saved model has.
    said = [key for key in keys if key != "prompts" or any(dict(saved["prompts"]).values())]
    if not said:
        return {}, []
    return {}, [f"{SETTINGS_FILE}: {', '.join(said)} not used: {reason} (sentence-transformers ignores them, too)"]


def _prompts(saved: Mapping[str, Any], kind: str) -> tuple[dict[str, str], str | None]:
    given, default = saved.get("prompts") or {}, saved.get("default_prompt_name")
    if not isinstance(given, dict) or not all(isinstance(text, str | None) for text in given.values()):
        raise InputError(f"{SETTINGS_FILE}: prompts must map names to texts; correct the file")
    texts = {name: text or "" for name, text in given.items()}
    roles = dict.fromkeys(_ROLES[kind], "")
    if default is not None and default not in roles | texts:
        raise InputError(
            f"{SETTINGS_FILE}: default_prompt_name is {default!r}, and there is no such prompt "
            f"({', '.join(map(repr, roles | texts)) or 'there are none'}); correct the file"
        )
    if default is not None:
        texts = roles | texts
    elif texts.items() <= roles.items():
        texts = {}
    return texts, default


def _similarity(saved: Mapping[str, Any]) -> str | None:
    name = saved.get("similarity_fn_name")
    return name if name in SIMILARITIES else None


def _truncate_dim(saved: Mapping[str, Any], hidden: int) -> int | None:
    value = saved.get("truncate_dim")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{SETTINGS_FILE}: truncate_dim is {value!r}; it must be an integer of at least 1")
    return value if value < hidden else None


def _matryoshka_dims(root: Path, config: Mapping[str, Any], hidden: int) -> tuple[int, ...]:
    """Widths by ``config.json``, else by the card that sentence-transformers wrote after a MatryoshkaLoss."""
    found = config.get("matryoshka_dimensions")
    card = root / "README.md"
    if found is None and card.is_file():
        listed = _DIMS_OF_CARD.search(card.read_text(encoding="utf-8", errors="replace"))
        found = [int(number) for number in re.findall(r"\d+", listed[1])] if listed else []
    widths = found if isinstance(found, list) else []
    usable = {width for width in widths if type(width) is int and 1 <= width <= hidden}
    return tuple(sorted(usable, reverse=True))


def _activation(saved: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The activation of a cross-encoder with one label, and notes."""
    inner = config.get("sentence_transformers")
    # The order in which sentence-transformers looks; the first key that is there decides.
    places = [(SETTINGS_FILE, "activation_fn", saved.get("activation_fn"))]
    if isinstance(inner, dict) and "activation_fn" in inner:
        places.append(("config.json", "sentence_transformers.activation_fn", inner["activation_fn"]))
    else:
        key = "sbert_ce_default_activation_function"
        places.append(("config.json", key, config.get(key)))
    notes: list[str] = []
    for file, key, path in places:
        if path is None:
            continue
        if not isinstance(path, str):
            raise InputError(f"{file}: {key} must be the name of a class, not a {type(path).__name__}")
        if path.startswith("torch."):
            return _of_torch(path, f"{file}: {key}"), notes
        notes.append(
            f"{file}: {key} is {path!r}, code of its own, not used (sentence-transformers ignores it, too, unless "
            "it trusts remote code)"
        )
    return "sigmoid", notes


def _of_torch(path: str, where: str) -> str:
    module, _, name = path.rpartition(".")
    if name not in _TORCH_CLASSES or not (module == "torch.nn" or module.startswith("torch.nn.modules.")):
        raise UnsupportedError(
            f"{where} is {path!r}; supported are torch.nn's {', '.join(_TORCH_CLASSES)}. To rank by another "
            "activation, choose it at conversion (activation=, --activation); identity gives raw scores"
        )
    return _TORCH_CLASSES[name]


def _check_activation(activation: str, cross_encoder: bool) -> None:
    if activation not in ACTIVATIONS:
        raise InputError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
    if not cross_encoder:
        raise InputError(
            f"activation is {activation!r}, which is for models that rank: classification with one label. "
            "Leave it out"
        )
