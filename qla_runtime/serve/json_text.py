"""Strict JSON: what several readers would understand differently is refused."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from typing import Any

from qla_runtime.errors import shown
from qla_runtime.serve.errors import INVALID, MALFORMED, ServeError


def parse(body: bytes) -> Any:
    """The value of a JSON text in UTF-8, which some Windows programs begin with a byte order mark.

    Raises:
        ServeError: it is none; or it repeats a key, holds NaN or Infinity, is nested too deeply, or has an integer
            of thousands of digits.
    """
    try:
        return _DECODER.decode(body.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}" if body.strip() else "it is empty"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError:
        reason = "it has an integer of thousands of digits"
    raise ServeError(MALFORMED, f"the body is not JSON that this server reads: {reason}; send one JSON object")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        most = Counter(key for key, _ in pairs).most_common(1)
        twice = shown(most[0][0])
        raise ServeError(INVALID, f"the body has {twice} twice in one object; send it once", field=twice)
    return found


def _no_number(name: str) -> Any:
    raise ServeError(MALFORMED, f"the body holds {name}, which is no JSON number; send a finite number or null")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_number)
