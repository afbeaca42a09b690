"""What a distillation starts from: a teacher, a smaller student of its kind, and a corpus of plain text.

The student has the teacher's family, tokenizer and vocabulary, and a shape of its own. It has no head: where the
teacher is a sentence encoder, so is the student; every other teacher's student is a pretrained encoder.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qla_runtime.checkpoints.config import encoder_spec
from qla_runtime.checkpoints.reader import Checkpoint, open_checkpoint
from qla_runtime.checkpoints.tensors import Account
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.model.float_model import Model
from qla_runtime.texts.files import open_regular
from qla_runtime.texts.text_encoder import TextEncoder
from qla_runtime.texts.tokenizer import open_tokenizer
from qla_runtime.training.corpus import Corpus, open_corpus
from qla_runtime.training.start import check_float, check_same_tokens, fingerprint, text_encoder

_HEAD_KEYS = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
"""Keys of config.json that describe the teacher's head."""


@dataclass(frozen=True)
class StudentShape:
    """The shape that is asked for; None is the teacher's value, for ``intermediate`` 4 x ``hidden``.

    Attributes:
        layers, hidden, heads, intermediate: as in :class:`~qla_runtime.model.spec.EncoderSpec`.
        copy_layers: the teacher's layers, from 0, that the student's become; ``even`` spreads them, the last one
            included. None starts from random weights.
        checkpoint: an encoder that is the student, in place of all that.
    """

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    intermediate: int | None = None
    copy_layers: str | tuple[int, ...] | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Distillation:
    """A teacher, a student and a corpus, found to fit: what :class:`~qla_runtime.training.start.Start` is to a
    task and its data.

    Attributes:
        source: the teacher, as an encoder without a head.
        result: the student: its weights are read where it is a checkpoint of its own.
        copied: the teacher's layers that the student's are copies of; None where they are not.
        paths: the text files.
    """

    source: Checkpoint
    result: Checkpoint
    copied: tuple[int, ...] | None
    paths: tuple[Path, ...]

    @classmethod
    def open(
        cls,
        teacher: str | Path,
        data: str | Path | Sequence[str | Path],
        shape: StudentShape,
        max_length: int | None = None,
    ) -> Distillation:
        """Reads all but weights and texts.

        Args:
            teacher: any checkpoint that the runtime can run; its head, if it has one, is left out.
            data: text files.
            shape: the student's.
            max_length: tokens of a sequence; None takes the teacher's limit.

        Raises:
            InputError: a file is missing, or the shape does not fit the teacher.
            UnsupportedError: the runtime cannot run the teacher, or such a student.
        """
        source = open_checkpoint(teacher, task="embedding", max_length=max_length)
        paths = tuple(Path(path) for path in ([data] if isinstance(data, (str, Path)) else data))
        for path in paths:
            if not path.exists():
                raise InputError(f"{path}: no such file; give a corpus of plain text (.txt, .txt.xz, .txt.gz)")
        if shape.checkpoint is not None:
            return cls(source, _given_student(source, shape), None, paths)
        result = _new_student(source, shape)
        return cls(source, result, _copied(source, result, shape.copy_layers), paths)

    @property
    def given(self) -> bool:
        """Whether the student is a checkpoint of its own. A new one is the teacher's with another config."""
        return self.result.weights is not self.source.weights

    @property
    def new_words(self) -> bool:
        """Whether the student's word embeddings are random numbers, which must be trained."""
        return self.copied is None and not self.given

    def as_teacher(self) -> Checkpoint:
        """The teacher.

        Raises:
            InputError: its weights were trained to be rounded.
        """
        check_float(self.source, "the teacher")
        return self.source

    def load_model(self, seed: int) -> Model:
        """The student; ``seed`` decides random weights."""
        if self.given:
            return self.result.load_model()
        torch.manual_seed(seed)
        model = Model(self.result.encoder, self.result.task)
        if self.copied is None:
            model.apply(_initialize)
            return model.eval()
        theirs = self.source.load_model()
        model.encoder.embeddings.load_state_dict(theirs.encoder.embeddings.state_dict())
        for layer, number in zip(model.encoder.layers, self.copied, strict=True):
            layer.load_state_dict(theirs.encoder.layers[number].state_dict())
        return model.eval()

    def tokenizer(self, folder: Path) -> TextEncoder:
        """The tokenizer of both, of which ``folder`` gets a copy."""
        return text_encoder(self.source, folder)

    def features(self, encoder: TextEncoder, progress: bool, folder: Path) -> Corpus:
        """The corpus, tokenized into ``folder``."""
        tokenizer = open_tokenizer(self.source.tokenizer_json, self.source.text)
        vocab_size = min(self.source.encoder.vocab_size, self.result.encoder.vocab_size)
        return open_corpus(self.paths, folder / "corpus", tokenizer, encoder.max_length, vocab_size, progress)

    def settings(self) -> dict[str, Any]:
        """What a run's result depends on here."""
        return {
            "checkpoint": fingerprint(self.source),
            "data": [_digest(path) for path in self.paths],
            "max_length": self.source.task.max_length,
            "student": fingerprint(self.result) if self.given else self.result.encoder.to_json(),
            "copied": self.copied,
        }


def _given_student(teacher: Checkpoint, shape: StudentShape) -> Checkpoint:
    if shape != StudentShape(checkpoint=shape.checkpoint):
        raise InputError(
            "student is a checkpoint, which has a shape and weights; leave out the other student options"
        )
    assert shape.checkpoint is not None
    student = open_checkpoint(shape.checkpoint, task="embedding", max_length=teacher.task.max_length)
    check_same_tokens(student, teacher)
    return student


def _new_student(teacher: Checkpoint, shape: StudentShape) -> Checkpoint:
    """The teacher's checkpoint with another config. It holds none of the student's weights."""
    theirs = teacher.encoder
    hidden = shape.hidden or theirs.hidden
    intermediate = theirs.intermediate if hidden == theirs.hidden else 4 * hidden
    layers = shape.layers or theirs.layers
    if shape.layers is None and isinstance(shape.copy_layers, tuple):
        layers = len(shape.copy_layers)
    config = {key: value for key, value in teacher.config.items() if key not in _HEAD_KEYS}
    config |= {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": shape.heads or theirs.heads,
        "intermediate_size": shape.intermediate or intermediate,
    }
    if "embedding_size" in config:
        config["embedding_size"] = hidden
    try:
        spec = encoder_spec(config, max_length=teacher.task.max_length)
    except UnsupportedError as error:
        raise UnsupportedError(f"the student: {str(error).removeprefix('config.json: ')}") from None
    # A pooler belongs to the last states, which are not the teacher's in another width.
    account = teacher.account if hidden == theirs.hidden else Account({}, ())
    return dataclasses.replace(teacher, config=config, encoder=spec, account=account)


def _copied(
    teacher: Checkpoint, student: Checkpoint, asked: str | tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The teacher's layer for each of the student's.

    Raises:
        InputError: there is no such layer, not one for each, or the layers are of other sizes.
    """
    if asked is None:
        return None
    theirs, ours = teacher.encoder, student.encoder
    for name in ("hidden", "heads", "intermediate"):
        one, other = getattr(theirs, name), getattr(ours, name)
        if one != other:
            raise InputError(
                f"copy_layers needs a student whose layers are the teacher's; its {name} is {other}, and the "
                f"teacher's is {one}. Leave out copy_layers to start from random weights"
            )
    if asked == "even":
        if ours.layers > theirs.layers:
            raise InputError(
                f"the student has {ours.layers} layers, and the teacher {theirs.layers} to copy; name them, some "
                "of them twice, or take fewer"
            )
        return tuple((i + 1) * theirs.layers // ours.layers - 1 for i in range(ours.layers))
    assert isinstance(asked, tuple)
    if len(asked) != ours.layers:
        raise InputError(
            f"copy_layers names {len(asked)} layers, and the student has {ours.layers}; name one each"
        )
    for number in asked:
        if not 0 <= number < theirs.layers:
            raise InputError(
                f"copy_layers names layer {number}; the teacher has the layers 0 to {theirs.layers - 1}"
            )
    return asked


def _initialize(module: nn.Module) -> None:
    """As BERT does."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _digest(path: Path) -> str:
    """SHA-256 of a file that need not fit in memory."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a text file") from None
    return digest.hexdigest()
