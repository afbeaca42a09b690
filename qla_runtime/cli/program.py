"""The program ``qla``. Results go to standard output, progress and errors to standard error.

Exit status: 0 done, 2 a wrong call or a wrong file (one line says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from qla_runtime import QlaError, __version__, cmake_dir
from qla_runtime.cli.commands import (
    answer,
    bench,
    classify,
    convert,
    embed,
    encode,
    evaluate,
    explain,
    rank,
    search,
    serve,
    tag,
    trace,
    train,
)
from qla_runtime.cli.printing import fail, warn
from qla_runtime.cli.words import flags_of, in_flags

COMMANDS = (
    answer,
    trace,
    encode,
    embed,
    classify,
    rank,
    tag,
    serve,
    explain,
    convert,
    evaluate,
    train,
    search,
    bench,
)
"""In the order of ``qla --help``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    _replace_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that cannot show a character of an answer should not cost the answer.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is wrong
        _discard(sys.stdout)
        return 0
    except OSError as error:
        _discard(sys.stdout)
        return fail(f"standard output cannot be written ({error.strerror}); send it elsewhere")
    return status


def parser() -> argparse.ArgumentParser:
    """The command line with all its commands. A parsed one has ``command``, which runs it."""
    made = _Parser(
        prog="qla",
        description="INT8 transformer encoders on x86-64 CPUs; each call says how many tokens a layer keeps.",
    )
    made.add_argument("--version", action="version", version=f"qla {__version__}")
    made.add_argument(
        "--cmake-dir", action=_CMakeDir, help="print the folder for cmake -Dqla_DIR=..., to build C++ against this"
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; a text that begins with - stands after --"
        self.exit(fail(f"{message} (see {self.prog} --help)"))

    def _print_message(self, message: str, file: Any = None) -> None:
        # That of argparse ignores a full disk where Python does not buffer its output.
        (file or sys.stderr).write(message)


class _CMakeDir(argparse.Action):
    """Prints and exits as ``--version`` does, but asks for the folder only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(cmake_dir())
        parser.exit()


def _run(argv: Sequence[str] | None) -> int:
    whole = parser()
    try:
        arguments = whole.parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = warn
            arguments.command(arguments)
    except SystemExit as stop:  # --help, --version, or a command line that does not parse
        return stop.code if isinstance(stop.code, int) else 0
    except (QlaError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC):
            raise  # of standard output
        return fail(in_flags(str(error) or type(error).__name__, flags_of(whole)))
    return 0


def _replace_closed_streams() -> None:
    """Output that the caller has closed (``>&-``) goes nowhere; Python would have None in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  lives as long as the process


def _discard(stream: Any) -> None:
    """Sends what is left in a stream nowhere; Python would complain again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
