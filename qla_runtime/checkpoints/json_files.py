"""Reads the JSON files of a checkpoint, or says in one sentence what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qla_runtime.errors import InputError


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is missing, no regular file, or no JSON.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
            raise InputError(f"{path.name} is not a regular file; give a checkpoint folder with its files in it")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path.name} is missing from {path.parent.name!r}; is this a checkpoint folder?"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not readable JSON: {first_line(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        InputError: as :func:`read_json`, or another value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold a JSON object, not a {type(value).__name__}")
    return value


def optional_object(path: Path) -> dict[str, Any]:
    """As :func:`read_object`, but empty where there is no such file."""
    return read_object(path) if path.exists() else {}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
