"""Checkpoint in, package out: the room of ``qla convert``.

======================== =====================================================================================
``pipeline``             the way through: check, read, find scales, pack, compare, publish
``spec``                 what the runtime can run, and the refusal of everything else (no torch)
``limits``               the limits of a package, once
``config_keys``          every key of a Hugging Face config: understood, harmless, refused or named (no torch)
``checkpoint``           Hugging Face and sentence-transformers folders
``companions``           what beside the weights says that the model is more than they are
``weights``              safetensors and pickles, whole and in shards
``tensors``              every tensor: used, named or refused
``tokenizer``            tokenizer files to the package's tokenizer, compared with transformers'
``plain_tokenizer``      the same without transformers, from a tokenizer.json
``transformer_settings`` sentence_bert_config.json and its siblings
``sentence_settings``    what else sentence-transformers saves: prompts, similarity, width, activation
``pooling``              how token states become one vector
``no_answer``            whether a question answering model may say that there is no answer
``calibration``          which texts, cut into which token sequences
``sample_texts``         sentences for a report that was given none
``scales``               how a linear layer is quantized
``quantize``             neural-compressor's static INT8, read back as scales and zero points
``noise``                keeps what other libraries print out of our output
``pack``                 float32 weights to the kernels' bytes
``package_writer``       the files of docs/file-format.md, and their atomic appearance
``lengths``              the length configs a package starts with
``report``               INT8 engine against float32 original
``card``                 the package's README.md
``json_files``           JSON files of a checkpoint, with errors that name them
======================== =====================================================================================

Importing this package imports neither torch nor anything else of the ``[convert]`` extra.
"""

from __future__ import annotations

import importlib.util
import sys

from qla_runtime.errors import UnsupportedError

__all__ = ["convert", "require_packages"]

PIP_LINE = "pip install 'qla_runtime[convert]'"
_NEEDED = ("torch", "transformers", "safetensors", "neural_compressor")


def require_packages() -> None:
    """Checks that this interpreter can convert.

    Raises:
        UnsupportedError: Python is older than 3.11 (neural-compressor's own limit) or a package is missing.
    """
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:2]))
        raise UnsupportedError(
            f"converting needs Python 3.11 or newer (neural-compressor does); this is {version}. "
            f"In a newer one: {PIP_LINE}. The package it writes runs on Python 3.10 too"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"converting needs {', '.join(missing)}, not installed here. Run: {PIP_LINE}")


def convert(checkpoint, out, calibrate=None, **options) -> dict:
    """Converts a checkpoint into a package; see :func:`qla_runtime.convert.pipeline.convert`."""
    require_packages()
    from qla_runtime.convert import pipeline

    return pipeline.convert(checkpoint, out, calibrate, **options)
