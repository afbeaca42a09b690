"""Finds a package: a packaged model beside this file, a folder, or a model on the Hugging Face hub.

This module only finds the folder. The engine checks its contents. For a checkpoint or a pickle file the error
message has the command that makes a package of it.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from qla_runtime.errors import InputError, PackageError, UnsupportedError, shown

DEFAULT_PACKAGE = "minilm-l6-squad"
PACKAGED = {"span-qa": "minilm-l6-squad", "embedding": "all-minilm-l6-v2"}
"""Task -> the model for it that is installed with this library. It opens by name, offline."""
PACKAGE_FILES = ("manifest.json", "config.json", "model.safetensors", "tokenizer.json", "length_configs.json")
"""All files of a package but its card. A download from the hub takes these and the card, and nothing else."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_PICKLE_MAGIC = (b"\x80", b"PK\x03\x04")  # pickle protocol 2 and later; the zip that torch.save writes
_CHECKPOINT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def find_package(source: str | os.PathLike[str] | None, *, revision: str | None = None) -> Path:
    """The folder of a package.

    Args:
        source: a package folder, a name in :data:`PACKAGED`, a hub id (``owner/name``), or None for the default
            model. A folder in the working directory is preferred to a packaged model of the same name.
        revision: branch, tag or commit of a hub id.

    Raises:
        InputError: ``source`` is no path and no id, or a revision of something that is no hub id.
        PackageError: nothing is there, or it is a checkpoint, a pickle, or another kind of file.
        UnsupportedError: a hub id, and ``huggingface_hub`` is not installed.
    """
    if source is None:
        if revision is not None:
            raise InputError(
                f"revision is {shown(revision)} without a model; a revision is for hub ids, leave it out"
            )
        return _packaged(DEFAULT_PACKAGE)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"the model is {shown(source)}; pass a package folder, a hub id, or None for the default model"
        )
    text = os.fspath(source)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(
            f"the model is {shown(text)}; pass a package folder, a hub id, or None for the default model"
        )
    try:
        path = Path(text).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; ~ of a user who is not there; no encoding
        raise PackageError(f"the model {text[:100]!r} is no path: {error}. Check it") from None
    if exists and revision is not None:
        raise InputError(
            f"revision is {shown(revision)}, but {text!r} is here; a revision is for hub ids, leave it out"
        )
    if is_folder:
        return _checked_folder(path, text)
    if exists:
        raise _not_a_folder(path)
    if text in PACKAGED.values():
        if revision is not None:
            raise InputError(f"revision is {shown(revision)}, but {text!r} is a packaged model; leave it out")
        return _packaged(text)
    if _HUB_ID.fullmatch(text):
        # The small files tell a package from a checkpoint before gigabytes of weights are fetched.
        _checked_folder(_download(text, revision, PACKAGE_FILES[:2]), text)
        return _download(text, revision, (*PACKAGE_FILES, "README.md"))
    raise PackageError(
        f"there is no package at {text!r}: no such folder, no hub id (owner/name), and no packaged model "
        f"({', '.join(PACKAGED.values())}). Check the path, or call Engine.from_pretrained() for the default model"
    )


def convert_line(checkpoint: str) -> str:
    """The command that turns a checkpoint into a package."""
    out = Path(checkpoint.rstrip("/")).name + "-qla"
    return f"qla convert {shlex.quote(checkpoint)} {shlex.quote(out)}"


def _packaged(name: str) -> Path:
    path = Path(__file__).parent / "models" / name
    if not (path / "manifest.json").is_file():
        raise PackageError(
            f"the packaged model {name!r} is missing from this installation; reinstall qla_runtime "
            "from its wheel, or name a package folder"
        )
    return path


def _checked_folder(path: Path, source: str) -> Path:
    if (path / "manifest.json").exists():
        return path
    if (path / "config.json").exists() or any((path / name).exists() for name in _CHECKPOINT_WEIGHTS):
        raise PackageError(
            f"{source!r} is a checkpoint, not a package (it has no manifest.json). Convert it once:\n"
            f"    {convert_line(source)}\n"
            "then open the folder that this writes"
        )
    raise PackageError(
        f"{source!r} is not a package: it has no manifest.json. Pass a folder that 'qla convert' wrote "
        f"({', '.join(PACKAGE_FILES)})"
    )


def _not_a_folder(path: Path) -> PackageError:
    if path.suffix in _PICKLE_SUFFIXES or _first_bytes(path).startswith(_PICKLE_MAGIC):
        return PackageError(
            f"'{path}' is a pickle file, and loading one can run any code: qla_runtime never opens them. "
            "Save the checkpoint as safetensors, then convert its folder:\n    "
            f"{convert_line(str(path.parent))}"
        )
    remedy = f"pass its folder, '{path.parent}'" if path.name in PACKAGE_FILES else "pass the folder of a package"
    return PackageError(f"'{path}' is a file, but a package is a folder with a manifest.json; {remedy}")


def _first_bytes(path: Path) -> bytes:
    try:
        # A pipe or a device would block or never end.
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


def _download(repo: str, revision: str | None, files: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UnsupportedError(
            f"{repo!r} is no folder here, and fetching it from the hub needs huggingface_hub, which is not "
            "installed: pip install 'qla_runtime[hub]'"
        ) from None
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(files))
    except Exception as error:  # its errors are many classes of three libraries; the remedy is the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PackageError(
            f"{repo!r} is no folder here, and the hub did not give it: {reason}. Check the name and the "
            "connection, or pass the path of a package folder"
        ) from error
    return Path(folder)
