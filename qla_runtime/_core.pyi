"""The native module: csrc/python/bindings.cpp over the C door. T tokens, S sequences, L layers, H hidden."""

from collections.abc import Collection, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Ints = NDArray[np.int32]
_Floats = NDArray[np.float32]

STAGES: tuple[str, ...]

class Engine:
    def __init__(
        self,
        path: str | PathLike[str],
        num_threads: int = 0,
        streams: int = 1,
        isa: str | None = None,
        weights: str | None = None,
    ) -> None: ...
    @property
    def info(self) -> dict[str, Any]: ...
    @property
    def config_json(self) -> str: ...
    @property
    def length_configs_json(self) -> str: ...
    def tokenizer_json(self) -> bytes: ...
    def explain(self) -> str: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def run(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        type_ids: NDArray[np.int32] | None,
        lengths: Sequence[tuple[int, Sequence[float], int]],
        length_index: NDArray[np.int32] | None,
        want: Collection[str],
    ) -> dict[str, NDArray[Any]]: ...

def top_spans(
    logits: NDArray[np.float32],
    is_context: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    questions: NDArray[np.int64],
    positions: NDArray[np.int64],
    max_tokens: int,
    top_k: int,
    score: int,
) -> tuple[_Ints, _Ints, _Ints, _Ints, _Floats, _Floats]:
    """Logits (T, 2) as ``run`` gives them; returns counts, window, first, last, score, null_score."""

def crc32c(buffer: Buffer) -> int: ...
def available_isas() -> list[str]: ...
def version() -> str: ...
