"""A job over many rows: its memory, and whether two kills on the way change a byte.

    python -m bench.bulk_kill --rows 1000000 [--texts FILE.txt] [--folder FOLDER]

Writes an input of so many rows, which repeat the texts, embeds it once undisturbed, and once with kill -9 at a
third and at two thirds. Needs disk space of four outputs (1.6 kB a row each).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WINDOW = 4096
TEXTS = ("a bird sings on the old roof", "rain", "nobody heard the last train leave, and it rained until morning")


def write_input(path: Path, rows: int, texts: Sequence[str]) -> None:
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    source = cycle(texts)
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, 100_000):
            count = min(100_000, rows - begin)
            ids = pa.array(range(begin, begin + count), pa.int64())
            writer.write_table(pa.table([ids, list(islice(source, count))], schema=schema))


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qla_runtime.cli", "embed", str(source), str(out), "--json"]
    return subprocess.Popen(
        [*command, "--window", str(WINDOW)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, object], float]:
    """The report of a job, and its peak memory in MB."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.1)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"the job ended with status {process.returncode}")
    return json.loads(output), peak


def memory(process: int) -> float:
    """Peak resident MB of a process; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
    return int(peak) / 1024


def kill_behind(process: subprocess.Popen[str], parts: Path, count: int) -> None:
    """Kills a job once it has written so many parts."""
    while len(list(parts.glob("part-*"))) < count:
        if process.poll() is not None:
            raise SystemExit(f"the job ended with status {process.returncode} before it could be killed")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--texts", type=Path, help="a text per line (default: three short sentences)")
    parser.add_argument("--folder", type=Path, help="for input and outputs (default: a temporary one)")
    arguments = parser.parse_args()
    texts = arguments.texts.read_text(encoding="utf-8").splitlines() if arguments.texts else TEXTS
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qla-bulk-")))
        source, whole, resumed = (folder / f"{name}.parquet" for name in ("input", "whole", "resumed"))
        write_input(source, arguments.rows, texts)
        report, peak = finish(start(source, whole))
        print(
            f"undisturbed: {report['rows']:,} rows in {report['seconds']:.1f} s, "
            f"{report['rows'] / report['seconds']:,.0f} texts/s, {report['tokens'] / report['seconds']:,.0f} "
            f"tokens/s, peak {peak:,.0f} MB, output {whole.stat().st_size / 1e6:,.0f} MB"
        )
        windows = -(-arguments.rows // WINDOW)
        for third in (1, 2):
            at = max(1, windows * third // 3)
            kill_behind(start(source, resumed), folder / "resumed.parquet.parts", at)
            print(f"killed behind part {at} of {windows}")
        report, peak = finish(start(source, resumed))
        print(f"resumed: {report['resumed']:,} rows were done before, peak {peak:,.0f} MB")
        same = digest(whole) == digest(resumed)
        print(f"the same bytes: {'yes' if same else 'NO'}")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
