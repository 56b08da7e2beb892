"""How fast DataInf scores 1,000 rows for 64 queries, against a loop over pairs of examples as its authors' released code runs it.

`python -m benchmarks.datainf [--json] [--rows N] [--queries Q] [--threads T]`

Rows are the size of LoRA's: 16 blocks of 8 x 256. The loop is our own writing of what the code released with Li et al. 2024 does (its
utils.py, after that of DataInf's authors): for each query and each weight the damping, from every row, and then every row's term, one
at a time; at last, for each row and query, a product for each weight. It is timed on one query and multiplied up, since it does the same
work for each. Its rows stand in memory as lists of tensors. Ours is all of it from a float32 index on disk: fit, solve with its residual,
scan. The two have to agree to 1e-5.

Q queries · N rows · D numbers of a row
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import record
from benchmarks.scan import interleaved, median, ratio, shard
from headwater.curvature import DataInf
from headwater.index.memory import MemoryIndex
from headwater.index.read import StoredIndex
from headwater.index.spec import IndexSpec
from headwater.index.write import Writer
from headwater.methods.influence import Influence
from headwater.types import Block, Layout

LAYOUT = Layout(tuple(Block(f"layer.{i}.lora_A", (8, 256), (8, 256)) for i in range(16)))
COMMON = 32  # directions that rows share
TIMED = 1  # queries that go through the loop in each run
TOLERANCE = 1e-5  # of the largest score

Example = list[Tensor]  # an example's gradients, weight by weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="for both sides")
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.rows, arguments.queries)
    for name, value in result.items():
        print(f"{name:32} {value}")
    if arguments.json:
        record("datainf", result, f"python -m benchmarks.datainf --json --threads {arguments.threads}")


def measure(n_rows: int = 1000, n_queries: int = 64) -> dict[str, Any]:
    """Times and their ratio, of runs that stood next to each other. Raises AssertionError where the two disagree."""
    with tempfile.TemporaryDirectory() as folder:
        index = stored(Path(folder), draw(n_rows, seed=0))
        queries = MemoryIndex([str(q) for q in range(n_queries)], LAYOUT, "measure", {"gradient": draw(n_queries, seed=1)})
        rows, asked = as_examples(index), as_examples(queries)[:TIMED]
        times = interleaved({"ours": lambda: scores(index, queries), "loop": lambda: looped_scores(asked, rows)})
        difference = disagreement(scores(index, queries)[:TIMED], looped_scores(asked, rows))
    share = n_queries / TIMED
    assert difference <= TOLERANCE, f"the two differ by {difference:.2g} of the largest score, at most {TOLERANCE:g} expected"
    return {
        "ratio": round(share * ratio(times["loop"], times["ours"]), 1),
        "ratio_cpu": round(share * ratio(times["loop"], times["ours"], clock="cpu_s"), 1),
        "largest_difference": float(f"{difference:.2g}"),
        "rows": n_rows,
        "queries": n_queries,
        "numbers_a_row": LAYOUT.size,
        "threads": torch.get_num_threads(),
        "loop_queries_timed": TIMED,
        "median_s": {"ours": median(times["ours"]), "loop_extrapolated": round(share * median(times["loop"]), 1)},
    }


def disagreement(found_QN: Tensor, expected_QN: Tensor) -> float:
    return float((found_QN - expected_QN).abs().max() / expected_QN.abs().max())


# ------------------------------------------------------------------------------------------------- the two sides


def scores(index: StoredIndex, queries: MemoryIndex) -> Tensor:
    method = Influence(DataInf())
    return torch.from_numpy(method.score(method.fit(index), index, queries).values_QN)


def looped_scores(queries: Sequence[Example], rows: Sequence[Example]) -> Tensor:
    """[Q, N] by the formula, one pair and one weight at a time; the sign and the 1/N are ours."""
    solved = [looped_solve(query, rows) for query in queries]
    values = [[sum(float((x * g).sum()) for x, g in zip(one, row, strict=True)) for row in rows] for one in solved]
    return torch.tensor(values) / -len(rows)


def looped_solve(query: Example, rows: Sequence[Example]) -> Example:
    solved = []
    for weight, v in enumerate(query):
        gradients = [row[weight] for row in rows]
        damping = 0.1 * torch.stack([(g**2).mean() for g in gradients]).mean()
        x = torch.zeros_like(v)
        for g in gradients:
            x += (v - (v * g).sum() / (damping + (g**2).sum()) * g) / (len(rows) * damping)
        solved.append(x)
    return solved


def as_examples(index: StoredIndex | MemoryIndex) -> list[Example]:
    """The form that the loop reads."""
    parts = index.layout.split(index.take("gradient", range(len(index)))).values()
    return [[part[i] for part in parts] for i in range(len(index))]


# ------------------------------------------------------------------------------------------------------ the data


def draw(n: int, *, seed: int) -> Tensor:
    """Rows with a few common directions, noise, and lengths that differ as gradients' do."""
    common_RD = torch.randn(COMMON, LAYOUT.size, generator=torch.Generator().manual_seed(17)) / COMMON**0.5
    generator = torch.Generator().manual_seed(seed)
    rows_ND = torch.randn(n, COMMON, generator=generator) @ common_RD + torch.randn(n, LAYOUT.size, generator=generator)
    return rows_ND * torch.randn(n, 1, generator=generator).mul(0.5).exp()


def stored(run: Path, rows_ND: Tensor) -> StoredIndex:
    norms_NK = torch.stack([part.flatten(1).norm(dim=1) for part in LAYOUT.split(rows_ND).values()], dim=1)
    writer = Writer.open(run, IndexSpec(LAYOUT, dtype="float32", shard_rows=len(rows_ND)))
    for rows in writer.begin("random rows", len(rows_ND)).missing():
        writer.write(rows, replace(shard(rows, rows_ND), gradient_norm_NK=norms_NK))
    return StoredIndex.open(run)


if __name__ == "__main__":
    main()
