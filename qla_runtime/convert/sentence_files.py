"""The files that let sentence-transformers open a package folder by its path; the engine does not read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qla_runtime.checkpoints.sentence_settings import SETTINGS_FILE
from qla_runtime.model.package import json_bytes

_MODULE = "qla_runtime.integrations.sentence_transformers"
_REQUIREMENTS = {"qla_runtime": ">=0.1", "sentence-transformers": ">=6.2"}


def sentence_files(config: Mapping[str, Any]) -> dict[str, bytes]:
    """``modules.json`` and ``config_sentence_transformers.json``, by name; nothing for models of other tasks.

    Args:
        config: the package's ``config.json``.
    """
    task = config["task"]
    if task["kind"] == "embedding":
        model, module = "SentenceTransformer", "QlaEncoder"
        own = {"similarity_fn_name": task.get("similarity", "cosine")}
        own |= {key: task[key] for key in ("truncate_dim",) if key in task}
    elif task["kind"] == "sequence-classification" and len(task["labels"]) == 1:
        model, module, own = "CrossEncoder", "QlaRanker", {}
    else:
        return {}
    settings = {
        "model_type": model,
        "requirements": _REQUIREMENTS,
        "prompts": config.get("prompts", {}),
        "default_prompt_name": config.get("default_prompt"),
        **own,
    }
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{_MODULE}.{module}"}]
    return {"modules.json": json_bytes(modules), SETTINGS_FILE: json_bytes(settings)}
