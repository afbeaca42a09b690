"""How a sentence-transformers folder says that token states become one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qla_runtime.errors import UnsupportedError

POOLINGS = ("mean", "cls")
"""What the engine computes: the mean over all tokens, or the first token's state."""


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
