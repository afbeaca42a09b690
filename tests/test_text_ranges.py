"""Ranges of text: white space at the ends goes, and nothing else."""

from __future__ import annotations

import pytest

from qla_runtime.texts.ranges import trim


@pytest.mark.parametrize(
    ("text", "start", "end", "left"),
    [
        ("in  Paris, we", 2, 9, "Paris"),
        ("in Paris", 3, 8, "Paris"),
        ("New  York ", 0, 10, "New  York"),
        ("a\u3000\u00a0\tb\r\n", 1, 7, "b"),  # what str.isspace() counts as white space, in every script
        ("\u200bx", 0, 2, "\u200bx"),  # a zero-width space is a format character, no white space
        ("a   b", 1, 4, ""),
        ("", 0, 0, ""),
    ],
)
def test_white_space_at_the_ends_goes(text: str, start: int, end: int, left: str) -> None:
    first, last = trim(text, start, end)
    assert text[first:last] == left
    assert start <= first <= last <= end
