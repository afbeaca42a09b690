"""The weight files of a checkpoint folder: safetensors or pickles, whole or in shards.

A listing gives every tensor's name, dtype and shape before anything is loaded. safetensors need numpy alone
(:mod:`.safetensors_file`). Pickles are read by ``torch.load(weights_only=True)``, which rebuilds tensors and runs
no code; the runtime itself never opens one.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.checkpoints.json_files import first_line, read_object
from qla_runtime.checkpoints.safetensors_file import Entry, read_entries, read_floats
from qla_runtime.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that weights may have."""

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"} | {
    f"{code}{bits}": f"{name}{bits}"
    for code, name, sizes in (
        ("I", "int", (8, 16, 32, 64)),
        ("U", "uint", (8, 16, 32, 64)),
        ("C", "complex", (64,)),
    )
    for bits in sizes
}
"""safetensors' code -> torch's name; other codes are shown as they are."""

_OTHER_FORMATS = (
    ("tf_model.h5", "TensorFlow"),
    ("*.ckpt.index", "TensorFlow"),
    ("flax_model.msgpack", "Flax"),
    ("*.onnx", "ONNX"),
    ("onnx/*.onnx", "ONNX"),
    ("*.gguf", "GGUF"),
    ("*.pt", "a pickle under another name"),
    ("*.pth", "a pickle under another name"),
    ("*.ckpt", "a pickle under another name"),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file, not loaded."""

    file: Path
    dtype: str
    """As torch calls it, such as ``float32``."""
    shape: tuple[int, ...]
    entry: Entry | None = None
    """Where it lies in a safetensors file."""


class WeightFiles:
    """All tensors of a checkpoint folder, by the names that they are stored under.

    Attributes:
        files: the weight files.
        tensors: name -> dtype and shape.
    """

    def __init__(self, folder: Path, source: str):
        """Lists the tensors.

        Args:
            folder: where the weights lie.
            source: what messages call the checkpoint.

        Raises:
            InputError: no weights, a shard is missing, a file is damaged, an index does not fit its shards.
            UnsupportedError: a pickle that holds more than tensors.
        """
        index, self.files = _find(folder, source)
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for name, tensor in _listing(file):
                if name in self.tensors:
                    other = self.tensors[name].file.name
                    raise InputError(
                        f"tensor {name!r} is in two weight files, {other} and {file.name}; delete the file that "
                        "does not belong to this checkpoint, or save the checkpoint again with save_pretrained()"
                    )
                self.tensors[name] = tensor
        for name, file_name in index.items():
            if name not in self.tensors or self.tensors[name].file.name != file_name:
                raise InputError(
                    f"the index says that tensor {name!r} is in {file_name}, and that file does not have it; "
                    "fetch the checkpoint's files again"
                )

    def load(self, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """These tensors as float32; an array may be a read-only view of its file.

        Args:
            names: of tensors whose dtype is one of :data:`FLOATS`.

        Raises:
            InputError: a file cannot be read.
        """
        loaded: dict[str, NDArray[np.float32]] = {}
        for file in self.files:
            wanted = {name: self.tensors[name].entry for name in names if self.tensors[name].file == file}
            entries = {name: entry for name, entry in wanted.items() if entry is not None}
            if entries:
                loaded |= read_floats(file, entries)
            elif wanted:
                content = _load_pickle(file)
                loaded |= {name: content[name].detach().float().numpy() for name in wanted}
        return loaded


def _find(folder: Path, source: str) -> tuple[dict[str, str], list[Path]]:
    """What an index says (tensor -> file), and the files: safetensors before pickles, whole before shards."""
    for name in _WHOLE:
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return {}, [whole]
        if index.is_file():
            shards = _weight_map(index)
            files = [folder / name for name in sorted(set(shards.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise InputError(
                    f"{source}: {len(missing)} of {len(files)} weight files are missing, such as {missing[0]}; "
                    "fetch the rest of the checkpoint"
                )
            return shards, files
    found = [
        (path, kind) for pattern, kind in _OTHER_FORMATS for path in sorted(folder.glob(pattern)) if path.is_file()
    ]
    if found:
        path, kind = found[0]
        raise UnsupportedError(
            f"{source}: the weights come as {path.name} ({kind}); only model.safetensors and pytorch_model.bin "
            "are read. Load the checkpoint in the library that wrote it, and save it with transformers' "
            "save_pretrained()"
        )
    raise InputError(
        f"{source}: neither model.safetensors nor pytorch_model.bin is in the folder; it holds no weights"
    )


def _weight_map(index: Path) -> dict[str, str]:
    shards = read_object(index).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(
            isinstance(name, str) and name and "/" not in name and "\0" not in name for name in shards.values()
        )
    ):
        raise InputError(f"{index.name}: weight_map must map tensors to files beside it")
    return shards


def _listing(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    if file.suffix != ".safetensors":
        for name, tensor in _load_pickle(file).items():
            yield name, StoredTensor(file, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        return
    for name, entry in read_entries(file).items():
        yield name, StoredTensor(file, _DTYPES.get(entry.dtype, entry.dtype), entry.shape, entry)


def _load_pickle(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of ``torch.save``, mapped where its format allows it."""
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            f"{file.name}: this is a pickle, which only torch reads, and torch is not installed here. Install it "
            "(pip install torch), or give the checkpoint as model.safetensors"
        ) from error

    def load(**options: Any) -> Any:
        return torch.load(file, map_location="cpu", weights_only=True, **options)

    try:
        with open(file, "rb") as opened:
            zipped = opened.read(2) == b"PK"
        content = load(mmap=True) if zipped else load()
    except pickle.UnpicklingError as error:
        raise UnsupportedError(
            f"{file.name}: this pickle holds more than tensors, and loading it could run code; nothing of it "
            "was run. Where you trust the file, load it with transformers and save it again with save_pretrained()"
        ) from error
    except Exception as error:  # a damaged file raises many kinds
        raise InputError(f"{file.name}: not a file of torch.save: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UnsupportedError(f"{file.name}: holds a {type(content).__name__}; a checkpoint is a dict of tensors")
    for name, tensor in content.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not isinstance(name, str) or not plain:
            raise UnsupportedError(
                f"{file.name}: entry {str(name)[:80]!r} is a {type(tensor).__name__}; a checkpoint maps names "
                "to plain tensors. Save the model's state_dict() alone"
            )
    return content
