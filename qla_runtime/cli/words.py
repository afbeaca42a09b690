"""Messages of the library in the words of the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

_ELSEWHERE = {
    "num_threads": "--threads",
    "calibration_samples": "--samples",
    "calibration_algo": "--algorithm",
    "text_pairs": "--pair",
    "sentences": "TEXT",
    "documents": "DOCUMENT",
}
"""Arguments of the library that the command line calls by another name."""

_PHRASES = [
    (re.compile(r"call Engine\.from_pretrained\(\)"), "leave out --model"),
    (re.compile(r"\bengine\.(\w+)\([^()]*\)"), r"qla \1"),
    (re.compile(r"\b(answer|encode|classify|rank|tag)\(\)"), r"qla \1"),
    (re.compile(r"Use one of these or a LengthConfig"), "Use one of these, or one value per layer"),
    (re.compile(r"For absolute counts use LengthConfig\.tokens"), "For absolute counts write whole numbers"),
    (re.compile(r"For shares of the length use LengthConfig\.ratio"), "For shares write numbers with a point"),
    (re.compile(r"(a name, )a LengthConfig( or another policy as) length="), r"\1values\2 --length"),
    (re.compile(r"\btop_k=None\b|\bNone( gives)"), r"all\1"),
    (re.compile(r"\b([Ll]eave it out) \(None\)"), r"\1"),
    (re.compile(r"\bor None for the default model"), "or leave out --model for the default model"),
    (re.compile(r"\bor None to\b"), "or leave it out to"),
    (re.compile(r"\bNone takes\b"), "leaving it out takes"),
]


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library, with the command line's names for arguments and calls.

    Args:
        message: such as ``"num_threads is 0; ..."``.
        flags: by argument of the library, as :func:`flags_of` gives them.
    """
    for pattern, words in _PHRASES:
        message = pattern.sub(words, message)
    for name, flag in (dict(flags) | _ELSEWHERE).items():
        word = re.escape(name)
        # "(task=, --task)" is for readers of both kinds.
        message = re.sub(rf"(?<![-\w]){word}=, (?={re.escape(flag)}(?![-\w]))", "", message)
        message = re.sub(rf"\b{word}=True\b", flag, message)
        message = re.sub(rf"(?<![-\w]){word}=(?=[^\s,.;:)])", f"{flag} ", message)
        message = re.sub(rf"(?<![-\w]){word}=", flag, message)
        if "_" in name or name in _ELSEWHERE:
            message = re.sub(rf"(?<![-\w'\"/]){word}(?![-\w'\"/.])", flag, message)
    return message


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """By name in Python, the longest flag of every option of a parser and its subcommands."""
    found: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= flags_of(child)
        elif action.option_strings:
            found[action.dest] = max(action.option_strings, key=len)
    return found
