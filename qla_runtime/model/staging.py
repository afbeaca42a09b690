"""Folders that appear whole or not at all: packages, checkpoints of training, runs of a search."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from qla_runtime.errors import InputError

MANIFEST = "manifest.json"
"""A package's list of files: without it the folder is no package."""
STAGING_SUFFIX = ".tmp"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_SWAP = (errno.EXDEV, errno.EBUSY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
"""What a rename answers where the target is a mount point, or the file system cannot swap folders."""


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
