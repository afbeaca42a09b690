"""``qla encode``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from qla_runtime import InputError
from qla_runtime.cli import render
from qla_runtime.cli.arguments import Commands, add_engine, add_output, add_prompts, new_command, positive
from qla_runtime.cli.lengths import add_lengths, chosen_length
from qla_runtime.cli.printing import print_json, say
from qla_runtime.cli.running import open_engine, parts
from qla_runtime.cli.texts import TEXTS_HELP, read_texts


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = new_command(
        commands,
        "encode",
        run,
        "turn sentences into embeddings",
        "qla encode --model my-encoder @sentences.txt --out vectors.npy",
    )
    add_engine(parser)
    add_lengths(parser)
    add_output(parser)
    parser.add_argument("texts", nargs="+", metavar="TEXT|@FILE|-", help=TEXTS_HELP)
    parser.add_argument("--out", metavar="FILE.npy", help="write the vectors as a numpy array")
    add_prompts(parser, "every text")
    parser.add_argument(
        "--truncate-dim", type=positive, metavar="N", help="give the first N numbers of each vector"
    )
    parser.add_argument("--normalize", action="store_true", help="bring every vector to length 1")


def run(arguments: argparse.Namespace) -> None:
    """Prints or writes one vector per text."""
    texts = read_texts(arguments.texts)
    if arguments.out is not None:
        _check_writable(arguments.out)
    engine = open_engine(arguments)
    length = chosen_length(arguments)
    options = {
        "prompt_name": arguments.prompt_name,
        "prompt": arguments.prompt,
        "truncate_dim": arguments.truncate_dim,
        "normalize_embeddings": arguments.normalize,
    }
    vectors = [
        row for part in parts(len(texts), "encode") for row in engine.encode(texts[part], length, **options)
    ]
    if arguments.out:
        _save(arguments.out, vectors)
        say(f"wrote {len(vectors)} x {len(vectors[0])} float32 to {arguments.out}", sys.stderr)
    if arguments.json:
        print_json([[float(value) for value in row] for row in vectors])
    elif not arguments.out:
        for text, row in zip(texts, vectors, strict=True):
            say(f"{render.one_line(text)}\t{render.vector(row)}")


def _check_writable(path: str) -> None:
    """Refuses, before the work, a file that could not be written after it."""
    folder = os.path.dirname(path) or "."
    if (
        not path
        or os.path.isdir(path)
        or not os.path.isdir(folder)
        or not os.access(path if os.path.exists(path) else folder, os.W_OK)
    ):
        name = path or "''"
        raise InputError(f"--out {name}: cannot be written; give a file in a folder that you may write to")


def _save(path: str, vectors: Sequence[Any]) -> None:
    import numpy as np

    try:
        with open(path, "wb") as file:
            np.save(file, np.stack(vectors))
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); give another file") from None
