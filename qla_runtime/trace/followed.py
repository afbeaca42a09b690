"""Calls of any task whose results also say how far each token of the input came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from qla_runtime.arrays import Arrays, kept_positions
from qla_runtime.engine import Engine
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.tasks.results import fact
from qla_runtime.texts.windows import QuestionWindows
from qla_runtime.trace.record import SPECIAL, Part, Token, parts

Result = TypeVar("Result")


@dataclass
class Followed(Generic[Result]):
    """What one input gave, and which of its tokens survived.

    Attributes:
        result: as the call gives it.
        texts: the input, by the names of its parts.
        tokens: of the input, each once.
        tokens_read: of all sequences that the input was read in, so that what windows share counts in each.
        windows: these sequences.
        kept: per layer, the tokens that it keeps, over all sequences.
        depth: for each of ``tokens``, how many layers kept it: in the sequence that kept it longest.
        length: the name of the length config, or the config spelled out.
        macs: multiply-accumulates that it cost.
        full_macs: those that it had cost with every token kept.
        budget_met: whether the call kept within its latency budget; None where there was none.
    """

    result: Result
    texts: Mapping[str, str]
    tokens: tuple[Token, ...]
    tokens_read: int
    windows: int
    kept: tuple[int, ...]
    depth: tuple[int, ...]
    length: str
    macs: int
    full_macs: int
    budget_met: bool | None = None

    @property
    def truncated(self) -> bool:
        """Whether the input was longer than the model reads, and its end was left out."""
        result: Any = self.result
        return bool(result.get("truncated") if isinstance(result, dict) else getattr(result, "truncated", False))

    def parts(self, answers: Mapping[str, Sequence[tuple[int, int]]]) -> list[Part]:
        """The input, drawn. ``answers`` are the characters of each part that answer the call."""
        return parts(self.tokens, self.depth, self.texts, answers)


def following(engine: Engine, call: Call[Result], names: Sequence[str]) -> Call[Followed[Result]]:
    """The same call, whose results say how far each token came.

    Args:
        engine: the model.
        call: of it, with the defaults of everything that says how a text is cut.
        names: what the first and the second text of an input are called.
    """

    def tokenize(inputs: Sequence[Any], what: Sequence[str]) -> Prepared[Followed[Result]]:
        prepared = call.tokenize(inputs, what)
        pairs = [(each,) if isinstance(each, str) else each for each in inputs]
        windows = None
        if engine.task == "span-qa":
            questions, contexts = zip(*pairs, strict=True)
            windows = engine.windows(questions, contexts)
        tokens = _tokens(engine, inputs, names)
        sources = _sources(prepared, windows, tokens)
        offsets = prepared.batch.offsets

        def read(arrays: Arrays, plan: LengthPlan) -> list[Followed[Result]]:
            found = []
            for i, result in enumerate(prepared.read(arrays, plan)):
                own = range(prepared.inputs[i], prepared.inputs[i + 1])
                kept = [kept_positions(arrays, offsets, sequence) for sequence in own]
                lengths = [int(offsets[sequence + 1] - offsets[sequence]) for sequence in own]
                found.append(
                    Followed(
                        result,
                        dict(zip(names, pairs[i], strict=False)),
                        tuple(tokens[i]),
                        tokens_read=sum(lengths),
                        windows=len(own),
                        kept=tuple(sum(map(len, layer)) for layer in zip(*kept, strict=True)),
                        depth=tuple(_depth(kept, [sources[s] for s in own], len(tokens[i])).tolist()),
                        length=fact(result, "length"),
                        macs=fact(result, "macs"),
                        full_macs=sum(map(engine.macs, lengths)),
                    )
                )
            return found

        return Prepared(prepared.batch, prepared.inputs, prepared.want | {"kept"}, read)

    return replace(call, tokenize=tokenize)  # type: ignore[arg-type, return-value]  # of another result


def _tokens(engine: Engine, inputs: Sequence[Any], names: Sequence[str]) -> list[list[Token]]:
    """Per input its tokens, before it is cut into windows."""
    encodings = engine.text_encoder.encode(inputs, with_offsets=True).encodings
    return [
        [
            Token(text, SPECIAL if sequence is None else names[sequence], *offsets)
            for text, sequence, offsets in zip(
                encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True
            )
        ]
        for encoding in encodings
    ]


def _sources(
    prepared: Prepared[Any], windows: QuestionWindows | None, tokens: Sequence[Sequence[Token]]
) -> list[NDArray[np.int64]]:
    """Per sequence, which tokens of its input it reads: in a window all but those that lie in other windows."""
    if windows is None:
        return [np.arange(len(of_input)) for of_input in tokens]
    widths = [int(flags.sum()) for flags in np.split(windows.is_context, windows.batch.offsets[1:-1])]
    found = []
    for q, of_input in enumerate(tokens):
        kinds = [token.part for token in of_input]
        begin = kinds.index(_last_text(kinds))
        end = len(kinds) - kinds[::-1].index(_last_text(kinds))
        everything = np.arange(len(of_input))
        for window in range(prepared.inputs[q], prepared.inputs[q + 1]):
            first = int(windows.positions[window])
            read = everything[first : first + widths[window]]
            found.append(np.concatenate([everything[:begin], read, everything[end:]]))
    return found


def _last_text(kinds: Sequence[str]) -> str:
    return next(kind for kind in reversed(kinds) if kind != SPECIAL)


def _depth(
    kept: Sequence[Sequence[NDArray[np.int32]]], sources: Sequence[NDArray[np.int64]], tokens: int
) -> NDArray[np.int16]:
    """int16 (tokens,): layers that kept each token, in the sequence that kept it longest."""
    depth = np.zeros(tokens, np.int16)
    for layers, source in zip(kept, sources, strict=True):
        of_window = np.zeros(len(source), np.int16)
        for positions in layers:
            of_window[positions] += 1
        depth[source] = np.maximum(depth[source], of_window)
    return depth
