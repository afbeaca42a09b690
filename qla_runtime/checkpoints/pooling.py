"""How a sentence-transformers folder says that token states become one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qla_runtime.errors import UnsupportedError
from qla_runtime.model.limits import POOLINGS


@dataclass(frozen=True)
class SentenceSpec:
    """How a sentence-transformers folder pools token states into one vector."""

    pooling: str
    """``mean`` or ``cls``."""
    normalize: bool
    max_length: int | None


def sentence_spec(
    modules: list[dict[str, Any]], pooling: dict[str, Any], transformer: dict[str, Any]
) -> SentenceSpec:
    """Reads a sentence-transformers folder's ``modules.json``, pooling config and transformer config.

    Raises:
        UnsupportedError: a module or pooling mode that the engine has no head for.
    """
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedError(
            f"modules.json: modules are {' > '.join(kinds) or 'none'}; supported is Transformer > Pooling "
            "[> Normalize]. Merge or remove the other modules before converting"
        )
    normalize = "Normalize" in kinds
    mode = pooling_mode(pooling, normalize)
    limit = transformer.get("max_seq_length")
    return SentenceSpec(mode, normalize, limit if isinstance(limit, int) else None)


def pooling_mode(pooling: Mapping[str, Any], normalize: bool) -> str:
    """``mean`` or ``cls`` from the config of a Pooling module, in its old form or in that of version 6.

    Args:
        pooling: ``1_Pooling/config.json``.
        normalize: a Normalize module follows.

    Raises:
        UnsupportedError: another mode, several modes, or a prompt that is left out of the mean.
    """
    if pooling.get("include_prompt") is False:
        raise UnsupportedError(
            "pooling config: include_prompt is false, which leaves the prompt's tokens out of the mean; the "
            "engine takes the mean over all tokens. Where the model is used without prompts, set include_prompt "
            "to true"
        )
    modes = _modes(pooling)
    if normalize and modes == ["mean_sqrt_len_tokens"]:
        return "mean"  # of another length, which the Normalize module takes away
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UnsupportedError(
            f"pooling config: the mode is {' + '.join(map(str, modes))}; supported is exactly one of mean and "
            "cls. Convert a sentence model that pools so"
        )
    return modes[0]


def _modes(pooling: Mapping[str, Any]) -> list[Any]:
    given = pooling.get("pooling_mode")
    if given is not None:
        return list(given) if isinstance(given, list) else [given]
    names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "weightedmean_tokens": "weightedmean"}
    on = [
        key.removeprefix("pooling_mode_")
        for key, value in pooling.items()
        if key.startswith("pooling_mode_") and value
    ]
    return sorted(names.get(mode, mode) for mode in on) or ["mean"]
