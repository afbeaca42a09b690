"""A package's folder: reading and writing the files of docs/file-format.md, checksummed.

Tensors are read by the engine alone; Python reads the JSON files, and writes everything.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qla_runtime.errors import InputError, PackageError, QlaError
from qla_runtime.model.staging import MANIFEST, STAGING_SUFFIX, publish, staging, write_file

FORMAT_VERSION = 1
WEIGHT_LAYOUT = "n64k4"
ALIGNMENT = 64
"""Bytes: data of a safetensors file begins at, and every tensor's size is, a multiple of this."""

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
LENGTHS, CARD = "length_configs.json", "README.md"
LISTED = (CONFIG, WEIGHTS, TOKENIZER, LENGTHS)
"""The files that a manifest lists: all but itself and the card."""

_DTYPES = {
    np.dtype(np.uint8): "U8",
    np.dtype(np.int8): "I8",
    np.dtype(np.int32): "I32",
    np.dtype(np.float32): "F32",
}


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), the checksum of package files."""
    from qla_runtime import _core

    return _core.crc32c(data)


def read_json(package: Path, name: str) -> dict[str, Any]:
    """A JSON file of a package.

    Raises:
        PackageError: the file is missing or damaged.
    """
    path = package / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be read ({error}); make the package again") from error


def checksums(package: Path) -> dict[str, str]:
    """The manifest's CRC-32C of each file of :data:`LISTED`, in hexadecimal.

    Raises:
        PackageError: the manifest is missing or damaged.
    """
    return {name: entry["crc32c"] for name, entry in read_json(package, MANIFEST)["files"].items()}


def write_package(
    folder: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    tokenizer_json: str,
    length_configs: Mapping[str, Any],
) -> None:
    """Writes every file but the card into an empty folder, the manifest last, and flushes them to disk.

    Args:
        folder: exists and is empty.
        config: ``config.json``.
        tensors: name -> packed and padded array, uint8 (codes of ternary weights), int8, int32 or float32.
        tokenizer_json: ``tokenizer.json``, truncation and padding off.
        length_configs: ``length_configs.json``.
    """
    contents = {
        CONFIG: json_bytes(config),
        WEIGHTS: safetensors_bytes(tensors),
        TOKENIZER: tokenizer_json.encode(),
        LENGTHS: json_bytes(length_configs),
    }
    for name, data in contents.items():
        write_file(folder / name, data)
    write_file(folder / MANIFEST, manifest_bytes(contents))


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file whose data and every tensor in it stand at multiples of 64 bytes.

    Layout: u64 header length, JSON header padded with spaces, tensors in the given order without a gap.
    """
    header, chunks, end = {}, [], 0
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor)
        if array.nbytes % ALIGNMENT:
            raise QlaError(f"tensor {name!r} of shape {array.shape} has {array.nbytes} bytes, no multiple of 64")
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        chunks.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return b"".join([struct.pack("<Q", len(text)), text, *chunks])


def json_bytes(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """A JSON file of a package. NaN and infinity are no JSON.

    Raises:
        InputError: a text in it is no valid Unicode.
    """
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object[max(0, error.start - 20) : error.end]!r} ends with half of a surrogate pair, which is "
            "no text; correct the name or prompt that holds it"
        ) from error


def manifest_bytes(contents: Mapping[str, bytes]) -> bytes:
    """``manifest.json`` over the given files; its own checksum is taken with eight zeros in its place."""
    blank = "0" * 8
    manifest = {
        "format": "qla-package",
        "format_version": FORMAT_VERSION,
        "weight_layout": WEIGHT_LAYOUT,
        "files": {name: {"size": len(data), "crc32c": f"{crc32c(data):08x}"} for name, data in contents.items()},
        "self_crc32c": blank,
    }
    text = json_bytes(manifest)
    key = b'"self_crc32c": "'
    return text.replace(key + blank.encode(), key + f"{crc32c(text):08x}".encode())


def update_package(package: Path, changes: Mapping[str, bytes]) -> None:
    """Replaces some files of a package. The new package, its manifest fitting, appears in one step.

    Args:
        package: the folder.
        changes: file name -> new bytes, for files of :data:`LISTED` and the card.

    Raises:
        InputError: no package, no room, no permission, or no such swap here; all is then as it was.
    """
    package = check_target(package)  # a link to a package must not take part in the swap itself
    with staging(package) as stage:
        new = stage / package.name
        try:
            # The staging folder may stand inside the package.
            shutil.copytree(package, new, ignore=shutil.ignore_patterns(f"*{STAGING_SUFFIX}", "lost+found"))
            contents = {
                name: changes[name] if name in changes else (package / name).read_bytes() for name in LISTED
            }
        except OSError as error:
            reason = error.strerror or error  # copytree's own error is a list of files
            raise InputError(f"cannot copy {package.name!r}: {reason}. Make room beside it") from error
        for name, data in {**changes, **contents}.items():
            write_file(new / name, data)
        write_file(new / MANIFEST, manifest_bytes(contents))
        publish(new, package)


def check_target(out: str | Path) -> Path:
    """The real path of a package to be, refused when something else stands there.

    Raises:
        InputError: ``out`` is a file, a FIFO or a device, or a folder that holds something other than a package.
    """
    path = Path(out)
    try:
        path = Path(os.path.realpath(out))
        if path.exists() and not path.is_dir():
            kind = "a file" if path.is_file() else "a FIFO, a socket or a device"
            raise InputError(f"{path.name!r} is {kind}; a package is a folder. Choose another output")
        foreign = path.is_dir() and not (path / MANIFEST).is_file() and not _is_empty(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path.name!r} cannot be looked at: {reason}. Choose another output") from error
    if foreign:
        raise InputError(
            f"folder {path.name!r} holds something that is no package; it is left alone. Choose another"
        )
    return path


def _is_empty(folder: Path) -> bool:
    """Nothing of the user's is there: a fresh volume has ``lost+found``, a killed run left its staging folder."""
    return all(
        entry.name == "lost+found" or (entry.name.startswith(".") and entry.name.endswith(STAGING_SUFFIX))
        for entry in folder.iterdir()
    )
