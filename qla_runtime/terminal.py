"""Makes texts from elsewhere safe to print on a terminal."""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL, C1, line and paragraph separators, and the controls of text direction.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with U+FFFD in place of each control character. Line feeds and tabs stay.

    A package, a data set or a message may hold escape sequences. On a terminal they could rename the window, hide
    text or overwrite it.
    """
    return _OBEYED.sub("\ufffd", text)
