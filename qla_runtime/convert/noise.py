"""Keeps what other libraries say out of our output, of which standard output belongs to ``--json``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

LIBRARIES = ("torch", "torchao", "neural_compressor", "transformers", "huggingface_hub", "accelerate")

_VARIABLES = {
    "LOGLEVEL": "ERROR",  # neural-compressor reads it once, when it is first imported
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences log lines below errors, warnings, prints and progress bars of :data:`LIBRARIES`.

    What is to be shown meanwhile must write to a stream that was taken before: ``sys.stderr`` is not the terminal.
    """
    import torch  # noqa: F401 (before the streams are replaced: its log handler keeps the one it finds)

    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(_VARIABLES)
    try:
        with _silent_loggers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silent_loggers() -> Iterator[None]:
    # Loggers made later have no level of their own, and take that of these.
    roots = [logging.getLogger(name) for name in LIBRARIES]
    made = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    loggers = [*roots, *(logger for logger in made if logger.name.partition(".")[0] in LIBRARIES)]
    levels = {logger: logger.level for logger in loggers}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
