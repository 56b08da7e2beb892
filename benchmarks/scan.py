"""How fast 64 queries meet every row of a stored bfloat16 index, and whether the best 100 are float64's.

`python -m benchmarks.scan [--json] [--rows N] [--threads T]`

Against it stands what one writes first: map the same files, upcast each block of rows to float32, multiply. Its block size is
the best of several, both sides are warm and use the same threads, and the runs are interleaved.

Q queries · N rows · D numbers of a row · R the rank of the rows' common structure
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.record import record
from headwater.index.read import StoredIndex
from headwater.index.scan import Top, bfloat16_is_fast, top_products
from headwater.index.spec import IndexSpec
from headwater.index.write import ShardData, Writer
from headwater.progress import track
from headwater.types import Block, Layout

D, R, QUERIES, TOP, SHARD_ROWS, REPEATS = 7168, 32, 64, 100, 4096, 7
BLOCK_ROWS = (256, 1024, 4096)  # the baseline's choices; its fastest counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=61_440)
    parser.add_argument("--threads", type=int, default=1, help="for both sides; 1 gives steady ratios on a busy machine too")
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), n_rows=arguments.rows)
    for name, value in result.items():
        print(f"{name:32} {value}")
    if arguments.json:
        record("scan", result, f"python -m benchmarks.scan --json --rows {arguments.rows} --threads {arguments.threads}")


def measure(run: Path, *, n_rows: int) -> dict[str, Any]:
    queries_QD = write_index(run, n_rows=n_rows)
    index = StoredIndex.open(run)
    shards = [map_rows(path) for path in sorted((run / "index" / "shards").glob("*.safetensors"))]
    times = interleaved(
        {
            "scan and top 100": lambda: top_products(index, queries_QD, TOP),
            "products": lambda: index.products("gradient", queries_QD),
            **{f"upcast {rows}": lambda rows=rows: upcast(shards, queries_QD, block_rows=rows).topk(TOP) for rows in BLOCK_ROWS},
        }
    )
    best = min((f"upcast {rows}" for rows in BLOCK_ROWS), key=lambda name: median(times[name]))
    same = agreement(top_products(index, queries_QD, TOP), shards, queries_QD)
    return {
        "ratio": ratio(times[best], times["scan and top 100"]),
        "ratio_cpu": ratio(times[best], times["scan and top 100"], clock="cpu_s"),
        "ratio_products": ratio(times[best], times["products"]),
        "top_100_identical": same,
        "queries": QUERIES,
        "threads": torch.get_num_threads(),
        "rows": n_rows,
        "index_mib": round(n_rows * D * 2 / 2**20),
        "baseline_block_rows": int(best.split()[1]),
        "bfloat16_is_fast": bfloat16_is_fast(),
        "median_s": {name: median(timings) for name, timings in times.items()},
    }


class Timing(NamedTuple):
    """Seconds on the clock, and seconds of the processor: apart from each other where others use the machine."""

    wall_s: float
    cpu_s: float


def ratio(slow: list[Timing], fast: list[Timing], *, clock: str = "wall_s") -> float:
    """The median of the ratios of runs that stood next to each other."""
    return round(statistics.median(getattr(s, clock) / getattr(f, clock) for s, f in zip(slow, fast, strict=True)), 2)


def median(times: list[Timing]) -> float:
    return round(statistics.median(timing.wall_s for timing in times), 4)


def interleaved(runs: dict[str, Callable[[], object]]) -> dict[str, list[Timing]]:
    """Each run `REPEATS` times in turn, after one round that warms everything."""
    times: dict[str, list[Timing]] = {name: [] for name in runs}
    for i in range(REPEATS + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if i:
                times[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return times


# ------------------------------------------------------------------------------------------------- the two sides


def map_rows(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("gradient")


def upcast(shards: list[Tensor], queries_QD: Tensor, *, block_rows: int) -> Tensor:
    """[Q, N] the plain way: each block of the mapped rows to float32, then the product."""
    values_QN = torch.empty(len(queries_QD), sum(map(len, shards)))
    start = 0
    for shard in shards:
        for block in shard.split(block_rows):
            values_QN[:, start : start + len(block)] = queries_QD @ block.float().T
            start += len(block)
    return values_QN


def agreement(top: Top, shards: list[Tensor], queries_QD: Tensor) -> str:
    """How many queries have float64's best rows, in its order."""
    blocks = [block for shard in shards for block in shard.split(BLOCK_ROWS[0])]
    exact_QN = torch.cat([queries_QD.double() @ block.double().T for block in blocks], 1)
    same = (exact_QN.topk(TOP).indices == top.positions_QK).all(1).sum()
    return f"{int(same)} of {len(queries_QD)}"


# ------------------------------------------------------------------------------------------------------ the data


def write_index(run: Path, *, n_rows: int) -> Tensor:
    """Rows with a few common directions, noise, and lengths that differ as gradients' do; queries of the same kind."""
    generator = torch.Generator().manual_seed(0)
    directions_RD = torch.randn(R, D, generator=generator)
    spec = IndexSpec(Layout((Block("weight", (D,), (D,)),)), dtype="bfloat16", shard_rows=SHARD_ROWS)
    writer = Writer.open(run, spec)
    for rows in track(list(shard_ranges(writer, n_rows)), total=None, description="write"):
        writer.write(rows, shard(rows, draw(len(rows), directions_RD, generator)))
    return draw(QUERIES, directions_RD, generator)


def shard_ranges(writer: Writer, n_rows: int) -> Iterator[range]:
    yield from writer.begin("random rows", n_rows).missing()


def draw(n: int, directions_RD: Tensor, generator: torch.Generator) -> Tensor:
    common_ND = torch.randn(n, R, generator=generator) @ directions_RD / R**0.5
    noise_ND = torch.randn(n, D, generator=generator)
    return (common_ND + noise_ND) * torch.randn(n, 1, generator=generator).mul(0.5).exp()


def shard(rows: range, gradient_ND: Tensor) -> ShardData:
    n, names = len(rows), ("prompt", "response", "group", "source")
    columns = {
        "id": [f"{row:032x}" for row in rows],
        **{name: [""] * n for name in names},
        "row": list(rows),
        "label": [None] * n,
        "loss": [0.0] * n,
        "n_tokens": [1] * n,
        "n_loss_tokens": [1] * n,
        "truncated": [False] * n,
    }
    return ShardData(gradient_ND, gradient_ND.norm(dim=1, keepdim=True), columns)


if __name__ == "__main__":
    main()
