"""Tensor names: Hugging Face's and ours, and what becomes of every tensor of a checkpoint.

A tensor is used, named in a note because it cannot change what the package computes, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qla_runtime.checkpoints.weights import FLOATS, StoredTensor
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.families import FAMILIES, Family
from qla_runtime.model.spec import EncoderSpec, TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

    from qla_runtime.model.float_model import Model

# Modules that only pass through what is in them: torch.compile, DataParallel, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Attributes that hold the whole model in Lightning and sentence-transformers.
_OUTER = re.compile(r"^(?:model\.|(?:0\.)?auto_model\.)+")
# Checkpoints that began in TensorFlow call a norm's parameters so.
_OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# What cannot change the package's results, and what it is.
_LEFTOVERS = (
    (r"embeddings\.(position_ids|token_type_ids)", "constant buffers"),
    (r"pooler\.dense\.(weight|bias)", "a pooler that this task does not use"),
    ("|".join(dict.fromkeys(family.pretraining for family in FAMILIES.values())), "heads of pretraining"),
    (r"qa_outputs\.(weight|bias)|classifier\.((dense|out_proj)\.)?(weight|bias)", "a head for another task"),
)
# What does change them, wherever it stands.
_ADAPTER = (
    "an adapter that is not merged (LoRA, PEFT): merge it first (merge_and_unload(), then save_pretrained())"
)
_FOREIGN = (
    (
        r"lora_|hada_|lokr_|vera_|oft_|\.base_layer\.|^base_model\.model\.|modules_to_save|original_module|ia3_|"
        r"adapter|prompt_encoder|prompt_embeddings|prefix_tuning",
        _ADAPTER,
    ),
    (
        r"\.(SCB|CB|weight_(scale|scale_inv|zero_point|packed|shape|format|g_idx)|input_scale|output_scale|qweight|"
        r"qzeros|scales|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|quant_state|W_q|codebooks|"
        r"smooth_scale|weight\._(data|scale|shift))\b|quant(izer|_state)|fake_quant|activation_post_process",
        "part of weights that are quantized already: convert the float checkpoint that they were made from",
    ),
    (
        r"\.parametrizations\.|\.weight_[guv]$|\.weight_orig$",
        "a weight in parts (weight norm, spectral norm): remove the parametrization "
        "(torch.nn.utils.parametrize.remove_parametrizations()) and save the model again",
    ),
    (r"(^|\.)crf\.|transitions", "a CRF layer, which the engine does not have: train the model without it"),
    (r"distance_embedding|relative_attention|rotary|alibi", "of positions that the engine does not compute"),
)
_GENERIC_REMEDY = (
    "If the model works without them, load it with transformers' own class for the task and save it with "
    "save_pretrained(), which keeps only what that class computes with"
)


@dataclass(frozen=True)
class Origin:
    """Where one of our parameters comes from: canonical names to stack along the rows, each of one shape."""

    parts: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Account:
    """What becomes of a checkpoint's tensors.

    Attributes:
        stored: canonical name -> the name in the file, for every tensor.
        notes: a line for every kind of tensor that is left out.
    """

    stored: Mapping[str, str]
    notes: tuple[str, ...]


def canonical_names(names: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Names without wrappers and without the family's prefix -> names as stored.

    Raises:
        InputError: two tensors end up with one name.
    """
    found: dict[str, str] = {}
    for stored in names:
        name = _OUTER.sub("", _WRAPPERS.sub("", stored))
        for old, new in _OLD_NORMS.items():
            name = name.replace(old, new)
        name = name.removeprefix(prefix)
        if name in found:
            raise InputError(
                f"the weights hold both {found[name]!r} and {stored!r}, which are one tensor to this model; "
                "remove the one that does not belong to it"
            )
        found[name] = stored
    return found


def origins(family: Family, encoder: EncoderSpec, task: TaskSpec, position_rows: int) -> dict[str, Origin]:
    """Our parameter's name -> where it comes from.

    Args:
        family: whose names the checkpoint has.
        encoder: its shapes.
        task: its head.
        position_rows: rows of the checkpoint's position table, which may be more than the package keeps.
    """
    hidden, wide = encoder.hidden, encoder.intermediate
    matrices = {
        "embeddings.word": (encoder.vocab_size, hidden),
        "embeddings.position": (position_rows, hidden),
        "embeddings.token_type": (encoder.type_vocab_size, hidden),
        "ffn_in": (wide, hidden),
        "ffn_out": (hidden, wide),
        "head": (task.outputs, hidden),
    }
    found = {}
    for ours, theirs in names(family, encoder, task).items():
        theirs = [name.removeprefix(family.tensor_prefix) for name in theirs]
        kind = ours.removeprefix("encoder.")
        shape: tuple[int, ...] = (hidden,)
        if not kind.endswith("norm"):
            shape = matrices.get(kind) or matrices.get(kind.rsplit(".", 1)[-1]) or (hidden, hidden)
        found[f"{ours}.weight"] = Origin(tuple(f"{name}.weight" for name in theirs), shape)
        if not kind.startswith("embeddings.") or kind.endswith("norm"):
            found[f"{ours}.bias"] = Origin(tuple(f"{name}.bias" for name in theirs), shape[:1])
    return found


def account(
    tensors: Mapping[str, StoredTensor],
    family: Family,
    encoder: EncoderSpec,
    task: TaskSpec,
    position_rows: int,
    *,
    new_head: bool,
) -> Account:
    """Decides on every tensor of a checkpoint, by name, dtype and shape.

    Args:
        tensors: as stored.
        family: whose names they have.
        encoder: what the config says.
        task: what the model is for.
        position_rows: rows of the position table, by the config.
        new_head: the head will be new, so the checkpoint's need not fit, nor be there.

    Raises:
        InputError: a tensor is missing or of the wrong shape.
        UnsupportedError: a tensor that the engine has no use for and that changes what the model computes.
    """
    _refuse_foreign(tensors)
    stored = canonical_names(tensors, family.tensor_prefix)
    used = set()
    for ours, origin in origins(family, encoder, task, position_rows).items():
        module = ours.rsplit(".", 1)[0]
        if new_head and (module == "head" or (module == "pooler" and origin.parts[0] not in stored)):
            continue
        for part in origin.parts:
            _check(part, stored, tensors, origin.shape, task.kind if module in ("head", "pooler") else None)
            used.add(part)
    left = [name for name in stored if name not in used]
    return Account(stored, _notes(left, stored, family, encoder))


def names(family: Family, encoder: EncoderSpec, task: TaskSpec) -> dict[str, list[str]]:
    """Our module names -> those in a checkpoint with a head; several of them are stacked along the rows.

    Args:
        family: whose names.
        encoder: how many layers.
        task: which head.
    """
    found = {}
    for ours, theirs in family.encoder.items():
        if "{i}" not in ours:
            found[f"encoder.{ours}"] = [family.tensor_prefix + name for name in theirs]
    for i in range(encoder.layers):
        for ours, theirs in family.encoder.items():
            if "{i}" in ours:
                found[f"encoder.{ours}".format(i=i)] = [family.tensor_prefix + name.format(i=i) for name in theirs]
    return found | {ours: [name] for ours, name in family.heads[task.kind].items()}


def hugging_face_tensors(model: Model, family: Family) -> dict[str, Tensor]:
    """The model's float32 tensors under the family's names, as a checkpoint for its task has them."""
    encoder, task = model.encoder.spec, model.task
    theirs_of = names(family, encoder, task)
    prefix = family.tensor_prefix if task.kind == "embedding" else ""  # a bare encoder has none
    tensors = {}
    for name, tensor in model.state_dict().items():
        ours, kind = name.rsplit(".", 1)
        parts = tensor.detach().chunk(len(theirs_of[ours]))
        for theirs, part in zip(theirs_of[ours], parts, strict=True):
            tensors[f"{theirs.removeprefix(prefix)}.{kind}"] = part
    return tensors


def _refuse_foreign(tensors: Iterable[str]) -> None:
    for pattern, what in _FOREIGN:
        found = [name for name in tensors if re.search(pattern, name)]
        if found:
            raise UnsupportedError(f"the weights hold {_listed(found)}: {what}")


def _check(
    part: str,
    stored: Mapping[str, str],
    tensors: Mapping[str, StoredTensor],
    shape: tuple[int, ...],
    head_of: str | None,
) -> None:
    if part not in stored:
        inside = next((stored[name] for name in stored if name.endswith(f".{part}")), None)
        if inside is not None:
            raise InputError(
                f"the weights: tensor {part!r} is missing, and {_listed([inside])} is there: the encoder is "
                "part of another model. Load it with the code that made it, and save the encoder alone with its "
                "own save_pretrained()"
            )
        owner = f"a {head_of} checkpoint" if head_of else "an encoder of this config"
        remedy = (
            "Pass the task that this checkpoint was trained for (task=, --task)"
            if head_of
            else "Give the whole checkpoint, with the config.json that belongs to it"
        )
        raise InputError(f"the weights: tensor {part!r} is missing; {owner} has it. {remedy}")
    name = stored[part]
    tensor = tensors[name]
    if tensor.dtype not in FLOATS:
        raise UnsupportedError(
            f"the weights hold {name!r} as {tensor.dtype}; weights must be {', '.join(FLOATS)}. Where they are "
            "quantized, convert the float checkpoint that they were made from"
        )
    if tensor.shape != shape:
        raise InputError(
            f"the weights hold {name!r} of shape {tensor.shape}, but config.json asks for {shape}; the two files "
            "do not belong together"
        )


def _notes(
    left: Collection[str], stored: Mapping[str, str], family: Family, encoder: EncoderSpec
) -> tuple[str, ...]:
    """A line per kind of leftover; anything that is no known leftover is refused."""
    kinds: dict[str, list[str]] = {}
    unknown = []
    for name in left:
        what = next((what for pattern, what in _LEFTOVERS if re.fullmatch(pattern, name)), None)
        if what is None:
            unknown.append(name)
        else:
            kinds.setdefault(what, []).append(stored[name])
    shown = _listed([stored[name] for name in unknown])
    of_layer = re.compile(re.escape(family.layer_prefix) + r"(\d+)\.")
    layers = [int(match[1]) for match in map(of_layer.match, unknown) if match]
    if layers and max(layers) >= encoder.layers:
        raise UnsupportedError(
            f"the weights hold {max(layers) + 1} layers ({shown}), but config.json says num_hidden_layers is "
            f"{encoder.layers}; correct the one that is wrong"
        )
    if unknown:
        raise UnsupportedError(
            f"the weights hold {shown}, which this kind of model does not have and the engine would leave out. "
            f"{_GENERIC_REMEDY}"
        )
    return tuple(f"weights not used ({what}): {_listed(found)}" for what, found in kinds.items())


def _listed(found: Collection[str]) -> str:
    printable = [name if name.isprintable() else ascii(name) for name in list(found)[:3]]
    shown = [name if len(name) <= 100 else name[:97] + "..." for name in printable]
    rest = len(found) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
