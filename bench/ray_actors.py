"""What each further actor costs on a node of a Ray cluster: python -m bench.ray_actors [--actors 4] [--model M]

Private memory is an actor's own. The weights' file is mapped: its pages are in memory once per node.
"""

from __future__ import annotations

import argparse

import ray

from qla_runtime.hub import PACKAGED
from qla_runtime.integrations.ray import BatchModel

TEXTS = ["a bird sings on the old roof while rain falls over quiet streets"] * 256


@ray.remote(num_cpus=1)
class Actor:
    def measure(self, model: str) -> tuple[float, float, float]:
        """Private MB before the model is open and after a batch, and resident MB of the weights' file."""
        import pyarrow as pa

        before = private()
        self.model = BatchModel(model, num_threads=1)
        self.model(pa.table({"text": TEXTS}))
        return before, private(), resident("model.safetensors")


def private() -> float:
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private")) / 1024


def resident(name: str) -> float:
    total, inside = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            word = line.split(maxsplit=1)[0]
            if not word.endswith(":"):
                inside = line.rstrip().endswith(name)
            elif inside and word == "Rss:":
                total += int(line.split()[1])
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--model", default=PACKAGED["embedding"])
    arguments = parser.parse_args()
    ray.init(num_cpus=arguments.actors, include_dashboard=False, log_to_driver=False)
    actors = [Actor.remote() for _ in range(arguments.actors)]
    print(f"{'actor':>5} {'private MB before':>18} {'with the model':>15} {'added':>7} {'mapped, shared':>15}")
    for i, actor in enumerate(actors, 1):
        before, after, mapped = ray.get(actor.measure.remote(arguments.model))
        print(f"{i:>5} {before:>18.0f} {after:>15.0f} {after - before:>7.0f} {mapped:>15.0f}")


if __name__ == "__main__":
    main()
