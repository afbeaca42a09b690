"""Writes a package: the files of docs/file-format.md, checksummed, and appearing all at once."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qla_runtime.errors import InputError, QlaError

FORMAT_VERSION = 1
WEIGHT_LAYOUT = "n64k4"
ALIGNMENT = 64
"""Bytes: data of a safetensors file begins at, and every tensor's size is, a multiple of this."""

LISTED = ("config.json", "model.safetensors", "tokenizer.json", "length_configs.json")
"""The files that a manifest lists: all but itself and the card."""

_DTYPES = {np.dtype(np.int8): "I8", np.dtype(np.int32): "I32", np.dtype(np.float32): "F32"}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), the checksum of package files."""
    from qla_runtime import _core

    return _core.crc32c(data)


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
        tensors: name -> packed and padded array, int8, int32 or float32.
        tokenizer_json: ``tokenizer.json``, truncation and padding off.
        length_configs: ``length_configs.json``.
    """
    contents = {
        "config.json": json_bytes(config),
        "model.safetensors": safetensors_bytes(tensors),
        "tokenizer.json": tokenizer_json.encode(),
        "length_configs.json": json_bytes(length_configs),
    }
    for name, data in contents.items():
        write_file(folder / name, data)
    write_file(folder / "manifest.json", manifest_bytes(contents))


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


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON file of a package. NaN and infinity are no JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


def write_file(path: Path, data: bytes) -> None:
    """Writes and flushes: a package that has appeared must survive a power cut whole.

    Raises:
        InputError: no space, or no permission.
    """
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path.name}: {error.strerror}. Choose an output with room") from error


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
            shutil.copytree(package, new)
            contents = {
                name: changes[name] if name in changes else (package / name).read_bytes() for name in LISTED
            }
        except OSError as error:
            reason = error.strerror or error  # copytree's own error is a list of files
            raise InputError(f"cannot copy {package.name!r}: {reason}. Make room beside it") from error
        for name, data in {**changes, **contents}.items():
            write_file(new / name, data)
        write_file(new / "manifest.json", manifest_bytes(contents))
        publish(new, package)


def check_target(out: str | Path) -> Path:
    """The real path of a package to be, refused when something else stands there.

    Raises:
        InputError: ``out`` is a file, or a folder that holds something other than a package.
    """
    path = Path(os.path.realpath(out))
    if path.exists() and not path.is_dir():
        raise InputError(f"{path.name!r} is a file; a package is a folder. Choose another output")
    if path.is_dir() and any(path.iterdir()) and not (path / "manifest.json").is_file():
        raise InputError(
            f"folder {path.name!r} holds something that is no package; it is left alone. Choose another"
        )
    return path


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden temporary folder beside ``out``, gone afterwards whatever happened."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise InputError(f"cannot write beside {out.name!r}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(new: Path, out: Path) -> None:
    """Makes the folder ``new`` appear as ``out`` in one step.

    An older package at ``out`` is swapped, not overwritten, and then stands at ``new``, for the caller to
    delete: readers see the old package or the new one, never a mixture, and maps of the old one stay valid.

    Raises:
        InputError: the file system cannot swap folders, or refuses.
    """
    try:
        os.rename(new, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(f"cannot create {out.name!r}: {error.strerror}") from error
        _exchange(new, out)
    _sync_folder(out.parent)


def _exchange(first: Path, second: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    paths = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    if libc.renameat2(*paths, ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise InputError(
            f"cannot swap {second.name!r} for its new version: {reason}. Delete the folder first, or write "
            "elsewhere"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
