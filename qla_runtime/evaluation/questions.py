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

from qla_runtime.texts import squad
from qla_runtime.texts.squad import ARTICLES as ARTICLES

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
    return [
        Question(found.id, found.question, found.context, found.answers, found.version2)
        for found in squad.read_squad(path, articles)
    ]
