"""SQuAD files, 1.1 and 2.0: the one reader of their layout, data > paragraphs > context, qas > question, answers.

Whoever reads questions needs other parts of them. So :func:`squad_questions` checks what every reader needs, and a
:class:`SquadQuestion` checks the rest when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qla_runtime.errors import InputError
from qla_runtime.texts.files import Path, read_json, shown

ARTICLES = ("all", "odd", "even")
"""Which articles of a file count: by position, and the first one is odd."""


@dataclass(frozen=True)
class SquadQuestion:
    """A question as its file has it.

    Attributes:
        place: where it stands in its file, for error messages.
        context: the paragraph.
        question: the question.
        version2: whether the file allows for questions without an answer.
        fields: the entry itself.
    """

    place: str
    context: str
    question: str
    version2: bool
    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its name. Raises InputError where it has none."""
        return _text(self.fields, "id", self.place)

    @property
    def answers(self) -> tuple[str, ...]:
        """The text of every accepted answer; none where the file says that there is none.

        Raises:
            InputError: an answer is no text, or there is none in a file where every question has one.
        """
        found = enumerate(_list(self.fields, "answers", self.place))
        answers = tuple(_text(answer, "text", f"{self.place}.answers[{i}]") for i, answer in found)
        if not answers and not self.version2:
            raise InputError(
                f"{self.place}: has no answers; SQuAD 1.1 questions have at least one, and a file of SQuAD 2.0 "
                "says so in its version or in is_impossible"
            )
        return answers


@dataclass(frozen=True)
class SpanQuestion:
    """A question with one answer: ``context[start:end]``.

    Attributes:
        place: where it stands in its file, for error messages.
    """

    question: str
    context: str
    start: int
    end: int
    place: str


def squad_questions(data: Any, name: str, articles: str = "all") -> Iterator[SquadQuestion]:
    """The questions of a file, in its order.

    Args:
        data: the file's JSON.
        name: of the file, for error messages.
        articles: one of :data:`ARTICLES`.

    Raises:
        InputError: an entry that SQuAD does not have; the message names the place.
    """
    skip = {"all": None, "odd": 1, "even": 0}[articles]
    version2 = isinstance(data, dict) and str(data.get("version", "")).lower().lstrip("v").startswith("2")
    for a, article in enumerate(_list(data, "data", name)):
        if a % 2 == skip:
            continue
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{name}: data[{a}]")):
            where = f"{name}: data[{a}].paragraphs[{p}]"
            context = _text(paragraph, "context", where)
            for q, entry in enumerate(_list(paragraph, "qas", where)):
                place = f"{where}.qas[{q}]"
                question = _text(entry, "question", place)
                yield SquadQuestion(place, context, question, version2 or "is_impossible" in entry, entry)


def is_squad(data: Any) -> bool:
    """Whether the JSON of a file looks like SQuAD."""
    items = data.get("data") if isinstance(data, dict) else None
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and "paragraphs" in items[0]


def read_squad(path: Path, articles: str = "all") -> list[SquadQuestion]:
    """The questions of a file, in its order.

    Args:
        path: the JSON file.
        articles: one of :data:`ARTICLES`.

    Raises:
        InputError: no such file, no JSON, or an entry that SQuAD does not have; the message names the place.
    """
    if articles not in ARTICLES:
        raise InputError(f"articles is {articles!r}; it must be one of {', '.join(ARTICLES)}")
    return list(squad_questions(read_json(path, "give a SQuAD 1.1 file"), shown(path), articles))


def read_spans(path: Path) -> list[SpanQuestion]:
    """The questions of a SQuAD 1.1 file, each with the place of its first answer.

    Raises:
        InputError: as :func:`read_squad`; no questions, a question without an answer, or an answer that its
            context does not hold.
    """
    questions = [_span(question) for question in read_squad(path)]
    if not questions:
        raise InputError(f"{shown(path)}: holds no questions; give a SQuAD 1.1 file with some")
    return questions


def _span(question: SquadQuestion) -> SpanQuestion:
    """Its first answer, where the context has it nearest to where the file says."""
    place, context, answers = question.place, question.context, _list(question.fields, "answers", question.place)
    if not answers:
        raise InputError(f"{place}: has no answers; SQuAD 1.1 questions have at least one (2.0 is not read)")
    text = _text(answers[0], "text", f"{place}.answers[0]")
    start = answers[0].get("answer_start")
    if type(start) is not int:
        raise InputError(f"{place}.answers[0]: has no number 'answer_start'; give a file in the layout of SQuAD")
    found = [start] if 0 <= start and context.startswith(text, start) else _occurrences(context, text)
    if not text.strip() or not found:
        raise InputError(f"{place}: the context does not hold the answer {text[:40]!r}; correct the file")
    start = min(found, key=lambda position: abs(position - start))
    return SpanQuestion(question.question, context, start, start + len(text), place)


def _occurrences(context: str, text: str) -> list[int]:
    return [i for i in range(len(context)) if text and context.startswith(text, i)]


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
