"""What the columns of text files mean: texts, pairs of texts, labels and scores.

Files are read by :mod:`qla_runtime.texts.files`. A table's columns are found by the names in its first row (or by
the keys of its JSON objects): those of GLUE, QQP, SNLI, MNLI and the STS benchmark, and their usual relatives.
Tables without names are understood where their shape is known: CoLA's four columns, the STS benchmark's seven,
and one or two columns of texts where only texts are wanted.

A row that cannot be used is a bad row. The first bad row ends the reading with an error that names it, unless bad
rows are to be skipped; then a warning counts them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

from qla_runtime.errors import InputError
from qla_runtime.texts.files import BadRow, Path, Row, Table, read_json, read_lines, read_table, records, shown
from qla_runtime.texts.squad import is_squad, squad_questions

LABEL_COLUMNS = ("label", "quality", "gold_label", "is_duplicate", "labels", "class")
SCORE_COLUMNS = ("score", "similarity", "similarity_score", "relatedness_score")
TEXT_COLUMNS: dict[str, tuple[str, ...]] = {
    "sentence1": ("sentence2",),
    "question1": ("question2",),
    "premise": ("hypothesis", "sentence"),
    "question": ("sentence", "context", "passage"),
    "query": ("passage", "document", "text"),
    "sentence": ("text_pair",),
    "text": ("text_pair",),
    "text1": ("text2",),
    "text_a": ("text_b",),
    "sentence_a": ("sentence_b",),
    "#1 string": ("#2 string",),
    "review": (),
    "content": (),
}
"""The name of a text's column -> what the column of its second text may be called; the first that is there."""

FORMATS = (
    "a .txt (one text per line), a .tsv, .csv or .jsonl (texts, or pairs of texts, in columns), "
    "or a .json in SQuAD layout"
)

NO_LABEL = "-"
"""What SNLI and MNLI write as the gold label of a pair on which the annotators did not agree."""


@dataclass(frozen=True)
class Labelled:
    """Texts of a classification or regression file.

    Attributes:
        texts: a text, or a pair of texts, per row.
        labels: as the file spells them, one per row.
        scores: the labels are real numbers (a column of :data:`SCORE_COLUMNS`).
    """

    texts: list[str] | list[tuple[str, str]]
    labels: list[str]
    scores: bool


@dataclass(frozen=True)
class _Columns:
    """Which cells of a row mean what."""

    text: int
    pair: int | None = None
    label: int | None = None
    scores: bool = False
    named: bool = False
    """The file names its columns."""
    width: int | None = None
    """Columns that a row may have at most; None where more are usual."""
    unlabelled: str | None = None
    """The label of a row that has none."""

    @property
    def least(self) -> int:
        """Columns that a row must have."""
        return 1 + max(place for place in (self.text, self.pair, self.label) if place is not None)


class _Good(NamedTuple):
    """A row that can be used."""

    line: int
    text: str
    pair: str | None
    label: str


def read_labelled(path: Path, *, skip_bad_rows: bool = False) -> Labelled:
    """A table of texts, or pairs of texts, with labels or scores.

    Rows whose gold label is ``-`` (SNLI, MNLI) have no label; they are left out, and a warning counts them.

    Args:
        path: ``.tsv``, ``.csv``, ``.jsonl`` or ``.json``; any other name is read as tab-separated.
        skip_bad_rows: leave out rows that cannot be used, with a warning, in place of an error.

    Raises:
        InputError: no such file, no column of labels or texts, no rows, or a bad row.
    """
    table = read_table(path)
    name = _name(path)
    columns = _find_columns(table, wanted_label=True)
    if columns is None:
        _refuse_columns(table, name, "label")
    good, bad = _good_rows(table, columns)
    _settle(table, bad, len(good), name, skip_bad_rows)
    agreed = [row for row in good if row.label != columns.unlabelled]
    if len(agreed) < len(good):
        _warn(
            f"{name}: {len(good) - len(agreed):,} of {len(good):,} rows have no gold label "
            f"({columns.unlabelled!r}) and are left out"
        )
    if not agreed:
        raise InputError(f"{name}: has a header and no rows with a label; give some")
    texts: list[Any] = [row.text if row.pair is None else (row.text, row.pair) for row in agreed]
    return Labelled(texts, [row.label for row in agreed], columns.scores)


def read_scored_pairs(path: Path, *, skip_bad_rows: bool = False) -> tuple[list[float], list[str], list[str]]:
    """Human scores, first and second sentences of a file of sentence pairs.

    Args:
        path: an STS benchmark file (seven tab-separated columns without names), or a table that names its columns,
            such as GLUE's STS-B.
        skip_bad_rows: leave out rows that cannot be used, with a warning, in place of an error.

    Raises:
        InputError: no such file, other columns, a bad row, or fewer than two pairs.
    """
    table = read_table(path)
    name = shown(path)
    columns = _find_columns(table, wanted_label=True)
    if columns is None or columns.pair is None:
        # Nothing here looks like a table of pairs: its rows are judged as the STS benchmark's.
        columns = _STS_BENCHMARK
    rows, bad = _good_rows(table, columns)
    scored: list[tuple[float, str, str]] = []
    for row in rows:
        score = _number(row.label)
        if score is None:
            bad.append(BadRow(row.line, f"has the score {row.label!r}, which is no number"))
        else:
            scored.append((score, row.text, str(row.pair)))
    _settle(table, sorted(bad, key=lambda row: row.line), len(scored), name, skip_bad_rows)
    if len(scored) < 2:
        raise InputError(f"{name}: holds {len(scored)} sentence pairs; a correlation needs at least 2")
    scores, firsts, seconds = (list(column) for column in zip(*scored, strict=True))
    return scores, firsts, seconds


def read_texts(path: Path, *, articles: str = "all", skip_bad_rows: bool = False) -> list[tuple[str, str | None]]:
    """Texts, or pairs of texts, and nothing else: ``(text, second text or None)`` per row.

    Args:
        path: see :data:`FORMATS`; a name without an ending is read as ``.txt``. Blank lines are left out.
        articles: of a SQuAD file, take ``all`` articles, or only those at ``odd`` positions (the 1st, 3rd,
            ...), which keeps the others unseen for reporting.
        skip_bad_rows: leave out rows that cannot be used, with a warning, in place of an error.

    Raises:
        InputError: no such file, another format, a bad row, or nothing in it.
    """
    if articles not in ("all", "odd"):
        raise InputError(f"articles is {articles!r}; it must be 'all' or 'odd'")
    name = shown(path)
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in (".txt", ""):
        texts: list[tuple[str, str | None]] = [(line, None) for line in read_lines(path) if line.strip()]
    elif suffix == ".json":
        value = read_json(path)
        if is_squad(value):
            texts = [(q.question.strip(), q.context) for q in squad_questions(value, name, articles)]
        else:
            texts = _table_texts(records(value, name), name, skip_bad_rows)
    elif suffix in (".tsv", ".csv", ".jsonl", ".ndjson"):
        texts = _table_texts(read_table(path), name, skip_bad_rows)
    else:
        raise InputError(f"{name}: its name ends in {suffix!r}; it must be {FORMATS}")
    if not texts:
        raise InputError(f"{name}: holds no text; give some dozens of typical inputs")
    return texts


def read_sentences(path: Path, *, skip_bad_rows: bool = False) -> list[str]:
    """Every text of a file, both texts of a pair included: what an embedding model is trained on.

    Raises:
        InputError: as :func:`read_texts`.
    """
    return [text for row in read_texts(path, skip_bad_rows=skip_bad_rows) for text in row if text is not None]


# ------------------------------------------------------------------------------------------ columns

_COLA = _Columns(text=3, label=1, width=4)
_STS_BENCHMARK = _Columns(text=5, pair=6, label=4, scores=True)


def _find_columns(table: Table, *, wanted_label: bool) -> _Columns | None:
    if table.header is None and not table.rows:
        return None
    first = [str(cell) for cell in table.rows[0].cells] if table.header is None else []
    names = table.header if table.header is not None else tuple(cell.strip().lower() for cell in first)
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    label = next((name for name in LABEL_COLUMNS + SCORE_COLUMNS if name in names), None)
    if text is not None and (label is not None or not wanted_label):
        pair = next((name for name in TEXT_COLUMNS[text] if name in names), None)
        return _Columns(
            text=names.index(text),
            pair=names.index(pair) if pair else None,
            label=names.index(label) if label else None,
            scores=label in SCORE_COLUMNS,
            named=True,
            width=len(names),
            # The datasets library writes SNLI's missing labels as -1, where others write the class -1.
            unlabelled={"gold_label": NO_LABEL}.get(label or "", "-1" if text == "premise" else None),
        )
    if len(first) == 4 and first[1] in ("0", "1"):
        return _COLA
    if len(first) >= 7 and _number(first[4]) is not None:
        return _STS_BENCHMARK
    return None


def _refuse_columns(table: Table, name: str, what: str) -> NoReturn:
    if table.header is None and not table.rows:
        if table.bad:
            _settle(table, table.bad, 0, name, False)
        raise InputError(f"{name}: is empty; give a table with a header and rows")
    head = table.header or tuple(str(cell) for cell in table.rows[0].cells)
    labels = f"{what} column ({', '.join(LABEL_COLUMNS + SCORE_COLUMNS)}) or no " if what else ""
    raise InputError(
        f"{name}: the header {' | '.join(head)[:80]!r} names no {labels}text column ({', '.join(TEXT_COLUMNS)}); "
        "give a table whose first row names its columns, tab-separated (.tsv) or comma-separated (.csv)"
    )


# --------------------------------------------------------------------------------------------- rows


def _good_rows(table: Table, columns: _Columns) -> tuple[list[_Good], list[BadRow]]:
    """The rows that have what ``columns`` wants, and the others."""
    named_by_first_row = table.header is None and columns.named
    good: list[_Good] = []
    bad = list(table.bad)
    for row in table.rows[named_by_first_row:]:
        fault = _fault(row, columns)
        if fault:
            bad.append(BadRow(row.line, fault))
            continue
        pair = None if columns.pair is None else row.cells[columns.pair]
        label = "" if columns.label is None else _label(row.cells[columns.label])
        good.append(_Good(row.line, row.cells[columns.text], pair, label))
    return good, sorted(bad, key=lambda row: row.line)


def _fault(row: Row, columns: _Columns) -> str | None:
    """Why a row cannot be used; None where it can."""
    count = len(row.cells)
    surplus = columns.width is not None and any(str(cell).strip() for cell in row.cells[columns.width :])
    if count < columns.least or surplus:
        expected = f"the header {columns.width}" if columns.named else f"should have {columns.width or 7} columns"
        return f"has {count} columns and {expected}"
    for place in (columns.text, columns.pair):
        if place is None:
            continue
        cell = row.cells[place]
        if not isinstance(cell, str):
            return f"has {cell!r} in place of a text" if cell is not None else "lacks a text"
        if not cell.isascii() and any("\ud800" <= c <= "\udfff" for c in cell):
            return "holds half of a surrogate pair, which is no character"
    if columns.label is not None and not _label(row.cells[columns.label]):
        return "has no label"
    return None


def _label(cell: Any) -> str:
    """A label as text; JSON files hold numbers too, and a class may be written as true or false."""
    if cell is None or isinstance(cell, (list, dict)):
        return ""
    return str(cell).strip()


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _settle(table: Table, bad: Sequence[BadRow], good: int, name: str, skip: bool) -> None:
    """An error for the first bad row, or a warning where bad rows are to be skipped."""
    if not bad:
        return
    first = f"{table.unit} {bad[0].line} {bad[0].reason}"
    if not skip:
        others = f", and {len(bad) - 1:,} more rows are bad" if len(bad) > 1 else ""
        raise InputError(f"{name}: {first}{others}. Correct the file, or skip such rows (--skip-bad-rows)")
    if not good:
        raise InputError(f"{name}: every row is bad; {first}")
    _warn(f"{name}: skipped {len(bad):,} of {len(bad) + good:,} rows; {first}")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _name(path: Path) -> str:
    return os.path.basename(os.fspath(path)) or shown(path)


# -------------------------------------------------------------------------------------------- texts


def _table_texts(table: Table, name: str, skip_bad_rows: bool) -> list[tuple[str, str | None]]:
    columns = _find_columns(table, wanted_label=False)
    if columns is None:
        columns = _columns_of_texts(table, name)
    if columns is None:
        _settle(table, table.bad, 0, name, skip_bad_rows)
        return []
    # A row without a label is as good a text as any.
    good, bad = _good_rows(table, replace(columns, label=None))
    _settle(table, bad, len(good), name, skip_bad_rows)
    return [(row.text, row.pair) for row in good if row.text.strip()]


def _columns_of_texts(table: Table, name: str) -> _Columns | None:
    """One or two columns without names: texts, or pairs of texts."""
    if not table.rows:
        return None
    width = len(table.rows[0].cells)
    if width > 2 or table.header is not None:
        _refuse_columns(table, name, "")
    return _Columns(0, 1 if width == 2 else None, width=width)
