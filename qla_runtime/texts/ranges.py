"""Character ranges of a text, as results report them: they begin and end with a visible character."""

from __future__ import annotations


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The range ``[start, end)`` of ``text`` without white space at its ends.

    Tokenizers count white space as part of a token beside it. With SentencePiece and byte-level tokenizers it is
    the token behind it.

    Args:
        text: the text.
        start: position of the first character.
        end: position behind the last character.

    Returns:
        The trimmed range. Where the range holds only white space, it is the empty one ``(end, end)``.
    """
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
