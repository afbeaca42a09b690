"""Character ranges of a text that a caller sees: answers and tags begin and end with a visible character."""

from __future__ import annotations


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The range ``[start, end)`` of ``text`` without the white space at both of its ends.

    Tokenizers count white space into the token beside it, each in its own way: SentencePiece and byte-level ones
    into the token behind it.

    Args:
        text: what the range points into.
        start: first character.
        end: one behind the last character.

    Returns:
        The trimmed range; ``(end, end)``, an empty one, where the range holds white space only.
    """
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
