"""What stands beside the weights and says that the model is more than they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qla_runtime.errors import UnsupportedError


def companion_notes(root: Path, source: str, task: str | None) -> list[str]:
    """Refuses a folder that holds part of a model or another head; names a head that the caller leaves out.

    Args:
        root: the checkpoint's folder.
        source: what messages call it.
        task: the task that the caller asked for.

    Raises:
        UnsupportedError: an adapter, or a scikit-learn head (SetFit).
    """
    if (root / "adapter_config.json").exists():
        raise UnsupportedError(
            f"{source}: adapter_config.json says that this is an adapter (PEFT, LoRA), not a whole model. Load "
            "it on its base model, merge it (merge_and_unload()) and save the result with save_pretrained()"
        )
    heads = [
        name for name in ("model_head.pkl", "model_head.joblib", "config_setfit.json") if (root / name).exists()
    ]
    if not heads:
        return []
    if task is None:
        raise UnsupportedError(
            f"{source}: {heads[0]} says that this is a SetFit classifier, whose scikit-learn head the engine "
            "does not have. To convert its sentence encoder alone, pass the task embedding (task=, --task)"
        )
    return [f"{heads[0]}: the SetFit head is not used"]


def check_modules(modules: list[dict[str, Any]]) -> None:
    """Refuses a sentence-transformers folder without pooling that is more than a cross-encoder's one transformer.

    Raises:
        UnsupportedError: another module, such as ColBERT's projection of every token.
    """
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if not any(kind.endswith("Pooling") for kind in kinds) and kinds != ["Transformer"]:
        raise UnsupportedError(
            f"modules.json: modules are {' > '.join(kinds) or 'none'}; supported are a lone Transformer and "
            "Transformer > Pooling [> Normalize]. Convert a model that has no other modules"
        )
