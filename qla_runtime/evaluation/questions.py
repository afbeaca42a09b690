"""Questions of SQuAD, 1.1 and 2.0: how a file of them is read, and how one answer to one of them is scored.

The scores follow the official scripts of both versions.
"""

from __future__ import annotations

import os
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qla_runtime.errors import InputError
from qla_runtime.texts.files import read_json

ARTICLES = ("all", "odd", "even")
"""Which articles of a SQuAD file count, by their position. The first article is odd."""

_PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True)
class Question:
    """One question of a SQuAD file.

    Attributes:
        id: its id in the file.
        question: its text.
        context: the paragraph that it is about.
        answers: all accepted answers. In a file of SQuAD 2.0 a question may have none.
        version2: whether the file allows for questions without an answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    version2: bool = False

    def f1(self, answer: str) -> float:
        """:func:`word_f1` against the accepted answer that fits best, 0 to 1."""
        if "" in self._truths and not normalize_answer(answer):
            return 1.0
        return max(word_f1(answer, truth) for truth in self._truths)

    def exact_match(self, answer: str) -> float:
        """1.0 where :func:`exact_match` finds one of the accepted answers, else 0.0."""
        return max(exact_match(answer, truth) for truth in self._truths)

    @property
    def _truths(self) -> Sequence[str]:
        """What counts as right. SQuAD 2.0 leaves out answers without a word, and takes "" where none is left."""
        if not self.version2:
            return self.answers
        return [answer for answer in self.answers if normalize_answer(answer)] or [""]


def normalize_answer(text: str) -> str:
    """SQuAD's normalization: lower case, no punctuation, no articles, single spaces."""
    lower = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lower).split())


def exact_match(answer: str, truth: str) -> float:
    """1.0 where the normalized answers are equal, else 0.0."""
    return float(normalize_answer(answer) == normalize_answer(truth))


def word_f1(answer: str, truth: str) -> float:
    """The harmonic mean of precision and recall over the words of the normalized answers, 0 to 1."""
    words, expected = normalize_answer(answer).split(), normalize_answer(truth).split()
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def read_squad(path: str | os.PathLike[str], articles: str = "all") -> list[Question]:
    """The questions of a SQuAD file, 1.1 or 2.0, in its order.

    Args:
        path: the JSON file.
        articles: one of :data:`ARTICLES`.

    Raises:
        InputError: no such file, no JSON, or an entry that SQuAD does not have; the message names the place.
    """
    if articles not in ARTICLES:
        raise InputError(f"articles is {articles!r}; it must be one of {', '.join(ARTICLES)}")
    data = read_json(path, "give a SQuAD 1.1 file")
    skip = {"all": None, "odd": 1, "even": 0}[articles]
    version2 = isinstance(data, dict) and str(data.get("version", "")).lower().lstrip("v").startswith("2")
    questions = []
    for a, article in enumerate(_list(data, "data", str(path))):
        if a % 2 == skip:
            continue
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{path}: data[{a}]")):
            where = f"{path}: data[{a}].paragraphs[{p}]"
            context = _text(paragraph, "context", where)
            for q, entry in enumerate(_list(paragraph, "qas", where)):
                place = f"{where}.qas[{q}]"
                found = enumerate(_list(entry, "answers", place))
                answers = tuple(_text(answer, "text", f"{place}.answers[{i}]") for i, answer in found)
                allows_none = version2 or "is_impossible" in entry
                if not answers and not allows_none:
                    raise InputError(
                        f"{place}: has no answers; SQuAD 1.1 questions have at least one, and a file of SQuAD 2.0 "
                        "says so in its version or in is_impossible"
                    )
                id_, question = _text(entry, "id", place), _text(entry, "question", place)
                questions.append(Question(id_, question, context, answers, allows_none))
    return questions


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise InputError(f"{where}: has no list {key!r}; give a file in the layout of SQuAD")
    return found


def _text(value: Any, key: str, where: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise InputError(f"{where}: has no text {key!r}; give a file in the layout of SQuAD")
    return found
