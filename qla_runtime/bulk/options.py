"""What a job may be told. Imports no pyarrow, because the command line reads these classes for every command."""

from __future__ import annotations

from dataclasses import dataclass

from qla_runtime.settings import check_limits, one_of, setting, whole

VECTORS = ("float32", "float16", "int8")
"""Types of the numbers of a vector in the output."""


def names(text: str) -> tuple[str, ...]:
    """For argparse: column names with commas between."""
    return tuple(name for name in text.split(",") if name)


@dataclass(frozen=True)
class FileOptions:
    """How the input is read and the output written.

    Raises:
        InputError: a value out of its limit.
    """

    column: str = setting("text", "column of the texts (default: %(default)s)", metavar="NAME")
    keep: tuple[str, ...] | None = setting(
        None,
        "columns of the input that the output keeps, with commas between (default: all)",
        flag="--columns",
        metavar="A,B,...",
        read=names,
    )
    skip_bad_rows: bool = setting(False, "leave out rows whose text is missing or cannot be read, and count them")
    window: int = setting(
        16_384,
        "rows that are read, run and written at once: a row group of the output (default: %(default)s)",
        metavar="ROWS",
        limit=whole(1, 1 << 20),
    )
    overwrite: bool = setting(False, "replace an output that exists")

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class EmbedOptions:
    """What the vectors are like.

    Raises:
        InputError: a value out of its limit.
    """

    into: str = setting("embedding", "column for the vectors (default: %(default)s)", metavar="NAME")
    vectors: str = setting(
        "float32",
        "type of a vector's numbers: %(choices)s (default: %(default)s); int8 has a scale per vector, in the "
        "column NAME_scale",
        choices=VECTORS,
        limit=one_of(VECTORS),
    )
    truncate_dim: int | None = setting(
        None, "keep the first N numbers of each vector", metavar="N", limit=whole(1)
    )
    normalize_embeddings: bool = setting(False, "bring every vector to length 1", flag="--normalize")
    prompt_name: str | None = setting(None, "name of the model's prompt to put before every text")
    prompt: str | None = setting(None, "text to put before every text")

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class ClassifyOptions:
    """What is labelled, and how many labels a row gets."""

    pair_column: str | None = setting(None, "column of the second text of each pair", metavar="NAME")
    top_k: int | None = setting(1, "labels per row, in the column 'scores'", limit=whole(1))

    def __post_init__(self) -> None:
        check_limits(self)
