"""What a run starts from: a checkpoint whose head fits the task, or gets a new one, and the data for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from qla_runtime.checkpoints.config import task_of_architecture
from qla_runtime.checkpoints.reader import Checkpoint, open_checkpoint
from qla_runtime.errors import InputError
from qla_runtime.evaluation.tagging import Sentence, read_conll
from qla_runtime.model.float_model import Model
from qla_runtime.texts.data_sets import Labelled, read_labelled, read_sentences
from qla_runtime.texts.squad import SpanQuestion, read_spans
from qla_runtime.texts.text_encoder import TextEncoder
from qla_runtime.training.data import (
    Features,
    encode_labels,
    encode_tags,
    span_features,
    tag_features,
    text_features,
)
from qla_runtime.training.losses import check_task
from qla_runtime.training.recipe import Beginning


@dataclass(frozen=True)
class Start:
    """A checkpoint, and the file it is to be trained on, both read and found to fit.

    Attributes:
        source: the checkpoint; its task is the one trained for, with the data's labels for a new head.
        fresh: the head is new.
        path: the data file.
        items: its content.
    """

    source: Checkpoint
    fresh: bool
    path: Path
    items: list[SpanQuestion] | list[Sentence] | Labelled | list[str]

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        data: str | Path,
        *,
        task: str | None = None,
        max_length: int | None = None,
        new_head: bool = False,
        skip_bad_rows: bool = False,
    ) -> Start:
        """Reads checkpoint and data, all but the weights.

        Args:
            checkpoint: a fine-tuned checkpoint, or a pretrained encoder, which gets a new head.
            data: SQuAD json for span QA, a GLUE-like table for classification and regression, a CoNLL file
                for token classification, texts (one per line, or in a table) for embeddings; see
                :mod:`qla_runtime.texts.data_sets`.
            task: a task kind; None reads it from the checkpoint.
            max_length: tokens of a sequence; None takes the checkpoint's limit (span QA: 384).
            new_head: replace a head that the checkpoint has.
            skip_bad_rows: leave out rows of ``data`` that cannot be used, with a warning, in place of an error.

        Raises:
            InputError: a file is missing or laid out otherwise, or the checkpoint's head does not fit.
            UnsupportedError: the runtime cannot run this architecture.
        """
        source = open_checkpoint(checkpoint, task=task, max_length=max_length, new_head=True)
        check_task(source.task)
        kind, own = source.task.kind, _own_task(source)
        if own not in (None, kind) and not (new_head and kind != "embedding"):
            remedy = "Give a sentence encoder" if kind == "embedding" else "Pass --new-head to replace it"
            raise InputError(f"{source.source}: its head is for {own}, and the task is {kind}. {remedy}")
        fresh = kind != "embedding" and (new_head or own is None)
        source.check_weights(new_head=fresh)
        path = Path(data)
        if kind == "embedding" and task is None:
            _ask_about_labels(path, source)
        if kind == "span-qa":
            return cls(source, fresh, path, read_spans(path))
        if kind == "embedding":
            return cls(source, fresh, path, read_sentences(path, skip_bad_rows=skip_bad_rows))
        if kind == "token-classification":
            sentences = read_conll(path, skip_bad_rows=skip_bad_rows)
            if fresh:
                tags = sorted({tag for sentence in sentences for tag in sentence.tags}, key=_tag_order)
                source = dataclasses.replace(source, task=dataclasses.replace(source.task, labels=tuple(tags)))
            encode_tags(sentences, source.task, path)  # refuse tags that do not fit now
            return cls(source, fresh, path, sentences)
        items = read_labelled(path, skip_bad_rows=skip_bad_rows)
        if fresh:
            names = ("score",) if items.scores else tuple(sorted(set(items.labels), key=_label_order))
            problem = "regression" if items.scores else "single_label"
            spec = dataclasses.replace(source.task, labels=names, problem=problem)
            source = dataclasses.replace(source, task=spec)
        encode_labels(items, source.task, path)  # refuse labels that do not fit now
        return cls(source, fresh, path, items)

    @property
    def result(self) -> Checkpoint:
        """Whose family, config and companions the trained checkpoint has."""
        return self.source

    @property
    def new_words(self) -> bool:
        """Whether the word embeddings are random numbers, which must be trained: never."""
        return False

    def as_teacher(self) -> Checkpoint:
        """The checkpoint as it is, to be learned from.

        Raises:
            InputError: its head is new, or it is no float model.
        """
        if self.fresh:
            raise InputError(
                f"{self.source.source} gets a new head, which has nothing to teach. Fine-tune it first (qla train "
                "length-drop), or give a teacher (teacher=, --teacher)"
            )
        check_float(self.source, "it")
        return self.source

    def load_model(self, seed: int) -> Model:
        """The model to train; ``seed`` initializes a new head."""
        torch.manual_seed(seed)
        model = self.source.load_model(new_head=self.fresh)
        if self.fresh:
            assert model.head is not None  # embeddings alone have none, and get none
            torch.nn.init.normal_(model.head.weight, std=0.02)
            torch.nn.init.zeros_(model.head.bias)
        return model

    def tokenizer(self, folder: Path) -> TextEncoder:
        """The checkpoint's tokenizer, of which ``folder`` gets a copy."""
        return text_encoder(self.source, folder)

    def features(self, encoder: TextEncoder, progress: bool, folder: Path | None = None) -> Features:
        """The data, tokenized. Nothing of it is kept in ``folder``."""
        spec, task = self.source.encoder, self.source.task
        if task.kind == "span-qa":
            return span_features(cast(list[SpanQuestion], self.items), encoder, spec, task, progress)
        if task.kind == "embedding":
            return text_features(cast(list[str], self.items), None, encoder, spec, progress)
        if task.kind == "token-classification":
            sentences = cast(list[Sentence], self.items)
            tags = encode_tags(sentences, task, self.path)
            return tag_features(sentences, tags, encoder, spec, progress)
        assert isinstance(self.items, Labelled)
        labels = encode_labels(self.items, task, self.path)
        return text_features(self.items.texts, labels, encoder, spec, progress)

    def settings(self) -> dict[str, object]:
        """What a run's result depends on here."""
        return {
            "checkpoint": fingerprint(self.source),
            "data": _digest([self.path]),
            "task": self.source.task.to_json(),
            "new_head": self.fresh,
        }


def open_teacher(checkpoint: str | Path, start: Beginning) -> Checkpoint:
    """A fixed teacher for a run.

    Raises:
        InputError: it does another task, knows other labels, reads other tokens, or is no float model.
    """
    task = start.source.task
    teacher = open_checkpoint(checkpoint, task=task.kind, max_length=task.max_length)
    if _own_task(teacher) not in (None, task.kind) or teacher.task.labels != task.labels:
        raise InputError(f"teacher {teacher.source}: its head does not give what the student's does")
    check_float(teacher, f"teacher {teacher.source}")
    check_same_tokens(start.source, teacher)
    return teacher


def check_same_tokens(student: Checkpoint, teacher: Checkpoint) -> None:
    """Raises InputError where a teacher reads other tokens than its student."""
    ours, theirs = json.loads(student.tokenizer_json), json.loads(teacher.tokenizer_json)
    if any(ours.get(part) != theirs.get(part) for part in ("model", "normalizer", "pre_tokenizer")):
        raise InputError(
            f"teacher {teacher.source}: its tokenizer is not the student's, so its outputs belong to other "
            "tokens. Give a teacher with the same vocabulary"
        )


def text_encoder(source: Checkpoint, folder: Path) -> TextEncoder:
    """A checkpoint's tokenizer, of which ``folder`` gets a copy."""
    (folder / "tokenizer.json").write_text(source.tokenizer_json, encoding="utf-8")
    return TextEncoder(
        source.tokenizer_json.encode,
        source.task.max_length,
        cut=source.task.kind != "span-qa",
        vocab_size=source.encoder.vocab_size,
        type_vocab_size=source.encoder.type_vocab_size,
        rules=source.text,
    )


def check_float(teacher: Checkpoint, name: str) -> None:
    """Raises InputError for a checkpoint whose weights were trained to be rounded."""
    if teacher.format is not None:
        raise InputError(
            f"{name} was trained with roundings (qla train qat), without which its weights mean little. Give the "
            "float checkpoint that it was trained from as the teacher (teacher=, --teacher)"
        )


def fingerprint(source: Checkpoint) -> str:
    """SHA-256 of a checkpoint's config and weights."""
    return _digest([source.folder / "config.json", *source.weights.files])


def _own_task(source: Checkpoint) -> str | None:
    """The task of the head that a checkpoint has; None for an encoder without one that is known here."""
    return task_of_architecture(source.config)


def _ask_about_labels(path: Path, source: Checkpoint) -> None:
    """Refuses a table with labels, for which nobody said what is to be trained."""
    if path.suffix.lower() == ".txt" or not path.is_file():
        return
    try:
        read_labelled(path)
    except InputError:
        return
    raise InputError(
        f"{path.name} is a table with labels, and {source.source} is a sentence encoder. To train a classifier on "
        "the labels, pass the task sequence-classification (task=, --task); to train embeddings on the lines as "
        "they stand, pass embedding"
    )


def _label_order(label: str) -> tuple[int, int, str]:
    """Whole numbers by value, before names by alphabet."""
    return (0, int(label), "") if label.isdigit() else (1, 0, label)


def _tag_order(tag: str) -> tuple[bool, str]:
    """O first, then by entity, so that B- and I- of one stand together."""
    return tag != "O", tag.partition("-")[2] + tag


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()
