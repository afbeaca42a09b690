"""Texts that came from elsewhere, made safe for a terminal."""

from __future__ import annotations

import re

# C0 but for tab and line feed, DEL, C1, line and paragraph separators, and what turns the direction of text.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text without the characters that a terminal obeys instead of showing; each becomes U+FFFD.

    A package, a data set or a message may hold escape sequences, which would rename the window, hide text or write
    over it. Line feeds and tabs stay.
    """
    return _OBEYED.sub("\ufffd", text)
