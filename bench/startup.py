"""From nothing to the first answer: import, opening, first question, as ratios to `import numpy`.

    python -m bench.startup [--rounds 15]

Every measurement is a fresh process that times itself; the steps of a round follow each other, so that a noisy
moment hits them all. Also says which modules `import qla_runtime` must not bring along, and the memory at the end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STEPS = {
    "import numpy": "import numpy",
    "import qla_runtime": "import qla_runtime",
    "open the default model": (
        "from qla_runtime import Engine; began = time.perf_counter(); Engine.from_pretrained()"
    ),
    "import, open, first answer": (
        "from qla_runtime import Engine\n"
        "Engine.from_pretrained().answer('Where does Ana live?', 'Ana lives in Lisbon with her brother.')"
    ),
}
SCRIPT = """
import sys, time
began = time.perf_counter()
{step}
print(1e3 * (time.perf_counter() - began))
unwanted = [name for name in ("torch", "transformers") if name in sys.modules]
assert not unwanted, unwanted
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def measure(step: str) -> tuple[float, float]:
    """Milliseconds, and peak resident MB of the process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(step=step)], check=True, capture_output=True, text=True
    )
    milliseconds, megabytes = done.stdout.split()
    return float(milliseconds), float(megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STEPS}
    for _ in range(args.rounds + 1):
        for name, step in STEPS.items():
            times[name].append(measure(step))
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rounds[1:], strict=True))
        for name, rounds in times.items()
    }
    base = medians["import numpy"][0]
    for name, (milliseconds, megabytes) in medians.items():
        print(f"{name:<28} {milliseconds:8.1f} ms  {milliseconds / base:5.2f} x numpy  {megabytes:6.0f} MB peak")


if __name__ == "__main__":
    main()
