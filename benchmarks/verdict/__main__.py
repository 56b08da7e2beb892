"""The verdict held against removal and retraining: calibrated on some tasks, judged on others.

python -m benchmarks.verdict [--json] [--work runs/verdict] [--processes 2] [--until STAGE] [--small]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.verdict.world import SMALL, Size, World, known_tasks, make_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--work", type=Path, default=Path("runs/verdict"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    size = SMALL if given.small else Size()
    make_base(given.work, size)
    worlds = [World(given.work, name, seed, size) for seed in range(size.worlds) for name in known_tasks()]
    for world in worlds:
        world.trace()
    for world in worlds:
        world.truth(processes=given.processes)


if __name__ == "__main__":
    main()
