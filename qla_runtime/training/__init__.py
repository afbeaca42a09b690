"""Fine-tuning: the room of ``qla train``. One run and one loop; a recipe says what is trained, by which losses.

================ =========================================================================================
``run``          ``train``: device, data, teacher, folder, loop, assessment and export of any recipe
``recipe``       what a recipe is: the interface, and nothing that one of them needs alone
``recipes/``     the recipes, one file each: settings, parameter groups, losses
``options``      how any recipe is run: duration, learning rate and the like
``loop``         steps, schedule, interruption
``start``        what a run starts from: checkpoint, head and data, found to fit
``losses``       what a task is trained for, and how far a student is from its teacher
``data``         questions, labelled and plain texts -> features -> batches of a token budget
``teacher``      a frozen model's outputs, computed once or batch by batch
``run_folder``   checkpoints that appear whole or not at all, and the log
``export``       the trained model as a plain Hugging Face folder
``assess``       accuracy of the float model, while it trains
``device``       CUDA, bf16, Intel Extension for PyTorch
``plot``         the log as a picture
``command``      ``qla train``: arguments and nothing else
================ =========================================================================================

Importing this package imports no torch. No module of it needs a torch newer than 2.8 or neural-compressor, so
training also runs in the environment of the Intel Extension for PyTorch; checkpoints move between both.
"""

from __future__ import annotations

import importlib.util

from qla_runtime.errors import UnsupportedError

__all__ = ["require_packages"]

_NEEDED = ("torch", "safetensors")


def require_packages() -> None:
    """Checks that this interpreter can train.

    Raises:
        UnsupportedError: a package is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"training needs {' and '.join(missing)}, not installed here. Run: pip install 'qla_runtime[train]'"
        )
