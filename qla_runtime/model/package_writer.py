"""Writes a package: the files of docs/file-format.md, checksummed, and appearing all at once."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import stat
import struct
import tempfile
import threading
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
_CANNOT_SWAP = (errno.EXDEV, errno.EBUSY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
"""What a rename answers where the target is a mount point, or the file system cannot swap folders."""

MANIFEST = "manifest.json"
STAGING_SUFFIX = ".tmp"


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
        write_file(new / "manifest.json", manifest_bytes(contents))
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
        foreign = path.is_dir() and not (path / "manifest.json").is_file() and not _is_empty(path)
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


def check_room(folder: Path, needed: int) -> None:
    """Checks that a file system has room before the work begins that would fill it.

    Args:
        folder: somewhere on the file system.
        needed: bytes.

    Raises:
        InputError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"the output needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there. Make room, or "
            "choose another output"
        )


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden temporary folder for what :func:`publish` makes appear as ``out``.

    It stands beside ``out``, or inside where ``out`` is a mount point or its parent takes no new folders. It is
    removed whatever happens: an error, Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        InputError: neither place can be written.
    """
    inside = _must_stay(out)
    try:
        if not inside:
            out.parent.mkdir(parents=True, exist_ok=True)
        place = out if inside else out.parent
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=STAGING_SUFFIX, dir=place))
    except OSError as error:
        where = "into" if inside else "beside"
        raise InputError(f"cannot write {where} {out.name!r}: {error.strerror}. Choose another output") from error
    with _removed_on_signals(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _must_stay(out: Path) -> bool:
    """``out`` is a folder that cannot be renamed: only what is in it can change."""
    if not out.is_dir():
        return False
    parent = out.parent
    if os.path.ismount(out) or not os.access(parent, os.W_OK | os.X_OK):
        return True
    # In a folder such as /tmp only an entry's owner may rename it.
    sticky = parent.stat().st_mode & stat.S_ISVTX
    return bool(sticky) and os.geteuid() not in (0, out.stat().st_uid, parent.stat().st_uid)


@contextlib.contextmanager
def _removed_on_signals(folder: Path) -> Iterator[None]:
    """Removes the folder when a signal ends the process that would otherwise not be told.

    Signals that somebody else handles, or ignores, are left to them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        # Ended by the signal itself, so that whoever sent it sees that.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def publish(new: Path, out: Path) -> None:
    """Makes the folder ``new`` appear as ``out``, in one step wherever folders can be renamed.

    An older package at ``out`` is swapped, not overwritten, and then stands at ``new``, for the caller to
    delete: readers see the old package or the new one, never a mixture, and maps of the old one stay valid.

    Where ``out`` itself must stay (a mount point, a file system that swaps no folders), its files are replaced one
    by one, each in one step: the old manifest goes first and the new one comes last, so that a reader in between
    finds no package, and never a mixture.

    Raises:
        InputError: the file system refuses.
    """
    try:
        if new.is_relative_to(out):
            _fill(new, out)
            return
        error = _rename(new, out)
        if error is not None and error.errno in _CANNOT_SWAP and out.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=STAGING_SUFFIX, dir=out) as inside:
                _fill(Path(shutil.copytree(new, Path(inside) / "new")), out)
        elif error is not None:
            raise error
        _sync_folder(out.parent)
    except OSError as error:
        reason = error.strerror or error  # copytree's own error is a list of files
        raise InputError(f"cannot create {out.name!r}: {reason}. Write elsewhere, or delete it first") from error


def _rename(new: Path, out: Path) -> OSError | None:
    """Renames a folder, or swaps it with the one that is there; returns why that did not happen."""
    try:
        os.rename(new, out)
    except OSError as error:
        return _exchange(new, out) if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error
    return None


def _exchange(first: Path, second: Path) -> OSError | None:
    """Swaps two folders in one step; returns why that did not happen."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    if libc.renameat2(*paths, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return None
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _fill(new: Path, out: Path) -> None:
    """Moves the files of ``new``, on the same file system, over those of the folder ``out``, the manifest last."""
    (out / MANIFEST).unlink(missing_ok=True)
    _sync_folder(out)
    for file in sorted(new.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
        os.replace(file, out / file.name)
    _sync_folder(out)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
