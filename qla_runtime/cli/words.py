"""What the command line says: an example for each command, and messages of the library in its words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

EXAMPLES = {
    "answer": ["qla answer 'Who wrote it?' --context @book.txt --length balanced"],
    "trace": ["qla trace 'Who wrote it?' --context @book.txt --html trace.html"],
    "encode": ["qla encode --model my-encoder @sentences.txt --out vectors.npy"],
    "classify": ["qla classify --model my-classifier 'a fine film' --top-k all"],
    "rank": ["qla rank --model my-reranker 'how do bees dance?' @passages.txt --top-k 5"],
    "tag": ["qla tag --model my-tagger 'Ada Lovelace lived in London.' --aggregation-strategy words"],
    "explain": ["qla explain --model my-encoder"],
    "convert": ["qla convert owner/checkpoint my-package --calibrate texts.txt"],
    "eval squad": ["qla eval squad dev-v1.1.json --length balanced"],
    "eval sts": ["qla eval sts sts-test.csv --model my-encoder"],
    "eval classify": ["qla eval classify dev.tsv --model my-classifier"],
    "eval rank": ["qla eval rank pairs.tsv --model my-reranker"],
    "eval tag": ["qla eval tag test.conll --model my-tagger"],
    "train length-drop": ["qla train length-drop my-checkpoint train-v1.1.json my-run --minutes 60"],
    "search": ["qla search my-package dev-v1.1.json"],
}
"""Per command, as ``--help`` shows them."""

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
    (re.compile(r"; leave it out \(None\) for"), "; leave it out for"),
]


def example(command: str) -> str | None:
    """The end of a command's help text."""
    lines = EXAMPLES.get(command)
    return "example:\n" + "\n".join(f"  {line}" for line in lines) if lines else None


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message of the library, whose arguments are called as the command line calls them.

    Args:
        message: such as ``"num_threads is 0; ..."``.
        flags: by argument of the library, as :func:`flags_of` gives them.
    """
    for pattern, words in _PHRASES:
        message = pattern.sub(words, message)
    for name, flag in (dict(flags) | _ELSEWHERE).items():
        word = re.escape(name)
        message = re.sub(rf"\b{word}=True\b", flag, message)
        message = re.sub(rf"(?<![-\w]){word}=(?=\S)", f"{flag} ", message)
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
