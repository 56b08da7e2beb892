"""How well scores from a stored, sketched index keep the order of the unsketched ones, and whether their error bars are right.

    python -m benchmarks.sketch --json [--rows 320] [--queries 32] [--threads 1]     about 8 minutes on one quiet core

Two workloads, the 28 linear layers of the Llama of `benchmarks.indexing` each: "random" is untrained and its rows are random tokens,
"trained" has learned a language, in which its rows are written (`benchmarks.workload`). For each sketch an index is written as
`headwater index` writes it. Held against scores for which nothing was sketched or stored are

    dot       grad_dot on the index                                     against h_q . g_n of whole gradients
    ekfac     EK-FAC fitted, solved and scored on the index             against EK-FAC of the whole parameters, the same labels
    coverage  the share of pairs for which score +- 1.96 standard errors of `rank.errors.dot_errors` holds the exact product

Agreement is Spearman's over rows, mean over queries, mean over sketch seeds.

Q queries · N rows · K some of them · B blocks · D numbers of a gradient
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy import agreement, named
from benchmarks.indexing import LINEAR, examples, model
from benchmarks.record import record
from benchmarks.workload import QUERY_SEED, structured_rows, trained_model
from headwater.curvature.ekfac import EKFAC
from headwater.curvature.kronecker import solve_in_basis
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.build import fill, settle
from headwater.index.codec import TORCH_DTYPES
from headwater.index.live import LiveIndex, LiveQueries
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index
from headwater.index.read import StoredIndex
from headwater.index.spec import IndexSpec
from headwater.index.write import Writer
from headwater.methods import GradDot
from headwater.methods.influence import Influence
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import quiet
from headwater.rank.errors import dot_errors
from headwater.recipe import IndexRecipe
from headwater.types import Example, Index, Layout, State

MEASURE = measures.get("response_log_probability")
NORMAL_95 = 1.96
WHITENED_ROWS = 32  # rows whose whole gradients are solved for the effective dimension
BUDGET = 300_000  # numbers of a row for which the bound is given: 300 kB in int8


@dataclass(frozen=True)
class Sketch:
    """`rank` numbers a side (None: whole), stored in `dtype`; one index for each of `seeds`."""

    rank: int | None
    dtype: str
    seeds: Sequence[int] = (0,)


SKETCHES = (Sketch(16, "bfloat16", (0, 1)), Sketch(31, "int8"), Sketch(40, "int8", (0, 1)), Sketch(48, "int8"))
COVERED = SKETCHES[:1]  # 256 numbers a block


@dataclass(frozen=True)
class Workload:
    session: Session
    rows: list[Example]
    queries: list[Example]

    @staticmethod
    def make(network: Any, rows: list[Example], queries: list[Example]) -> Workload:
        return Workload(Session(network, None, "causal-lm", name="benchmark"), named(rows, "row"), named(queries, "query"))

    def live(self) -> tuple[LiveIndex, LiveQueries]:
        """Rows and queries by their whole gradients."""
        layout = make_layout(self.session.model, find_scope(self.session.model, include=LINEAR), SketchSpec(rank=None))
        source = LiveSource(self.session, self.rows, layout)
        index = LiveIndex(MemoryIndex([row.id for row in self.rows], layout, "loss", {}), source)
        stored = MemoryIndex([query.id for query in self.queries], layout, "measure", {})
        return index, LiveQueries(stored, source, self.queries, MEASURE)

    @contextmanager
    def index(self, sketch: Sketch, seed: int) -> Iterator[tuple[StoredIndex, MemoryIndex]]:
        """Rows in files that are thrown away, and the queries under the same sketch."""
        options = {"scope": {"include": LINEAR}, "sketch": {"rank": sketch.rank, "seed": seed}, "store": {"dtype": sketch.dtype}}
        recipe = IndexRecipe.parse({"model": {"path": "-"}, "data": {"source": "-"}, **options})
        layout = settle(recipe, self.session, self.rows).layout
        spec = IndexSpec(layout=layout, dtype=recipe.store.dtype, hidden_size=self.session.hidden_size, shard_rows=recipe.store.shard_rows)
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer.open(Path(folder), spec)
            fill(writer, writer.begin("benchmark", len(self.rows)), self.rows, self.session, layout, recipe.engine.token_budget)
            yield StoredIndex.open(Path(folder)), query_index(self.session, layout, self.queries, MEASURE)


def random_workload(n_rows: int, n_queries: int) -> Workload:
    return Workload.make(model(), examples(n_rows), examples(n_queries, seed=QUERY_SEED))


def trained_workload(n_rows: int, n_queries: int) -> Workload:
    return Workload.make(trained_model(), structured_rows(n_rows), structured_rows(n_queries, seed=QUERY_SEED))


WORKLOADS = {"trained": trained_workload, "random": random_workload}


# -------------------------------------------------------------------------------------------------- nothing sketched


@dataclass(frozen=True)
class Exact:
    dot_QN: np.ndarray
    ekfac_QN: np.ndarray
    dimension_Q: np.ndarray


def exact(work: Workload) -> Exact:
    """Scores in nats from whole gradients, and for each query the effective dimension of its EK-FAC scores."""
    index, queries = work.live()
    method = Influence(EKFAC(labels="true"), mode="exact")
    state = method.fit(index)
    ekfac_QN = method.score(state, index, queries).values_QN
    h_QD = queries.take("gradient_whole", range(len(queries)))
    dot_QN = index.products("gradient_whole", h_QD).double().numpy() / -len(index)
    chosen = np.linspace(0, len(index) - 1, min(WHITENED_ROWS, len(index))).astype(int)
    squares_QB, squares_KB = (whitened_squares(state, queries.source.layout, x) for x in (h_QD, index.take("gradient_whole", chosen)))
    return Exact(dot_QN, ekfac_QN, effective_dimension(squares_QB, squares_KB, ekfac_QN * len(index)))


def whitened_squares(state: State, layout: Layout, x_KD: Tensor) -> Tensor:
    """[K, B] `x' (C + lambda)^-1 x` in each block. Rows are solved one at a time: each is as long as the model."""
    return torch.stack([_squares_of_one(state, layout, x_1D) for x_1D in x_KD.split(1)])


def _squares_of_one(state: State, layout: Layout, x_1D: Tensor) -> Tensor:
    pairs = zip(layout.split(x_1D).values(), layout.split(solve_in_basis(state, layout, x_1D)).values(), strict=True)
    return torch.stack([(x * solved).double().sum() for x, solved in pairs])


def effective_dimension(squares_QB: Tensor, squares_KB: Tensor, products_QN: np.ndarray) -> np.ndarray:
    """[Q] `(sum_b sqrt(|h_b|^2 E_n|g_b|^2))^2 / var_n(h . g)` of whitened gradients.

    An unbiased random projection of block b to k_b numbers has an error of variance `|h_b|^2 |g_b|^2 / k_b`; with k numbers spread over the
    blocks as is best for this sum it is dimension / k of the scores' own variance.
    """
    noise_Q = (squares_QB * squares_KB.mean(0)).sqrt().sum(1).square().numpy()
    return noise_Q / products_QN.var(axis=1)


def bound(dimension_Q: np.ndarray, numbers: int) -> float:
    """`1 / sqrt(1 + dimension / k)`: the best correlation with the exact scores for an unbiased projection, mean over queries.

    EK-FAC in the sketch is not unbiased (its curvature is nearer to the identity than the parameters' is), so it can lie a little above.
    """
    return float((1 / np.sqrt(1 + dimension_Q / numbers)).mean())


# ---------------------------------------------------------------------------------------------------------- sketched


@dataclass(frozen=True)
class Found:
    """Of one index."""

    dot: float
    ekfac: float
    row_bytes: int
    covered: float | None


def sketched(work: Workload, truth: Exact, sketch: Sketch, seed: int) -> Found:
    with work.index(sketch, seed) as (index, queries):
        ekfac = Influence(EKFAC(labels="true"), mode="stored")
        ekfac_QN = ekfac.score(ekfac.fit(index), index, queries).values_QN
        dot_QN = GradDot().score({}, index, queries).values_QN
        covered = coverage(index, queries, dot_QN, truth.dot_QN) if sketch in COVERED else None
        return Found(agreement(dot_QN, truth.dot_QN), agreement(ekfac_QN, truth.ekfac_QN), row_bytes(index.layout, sketch.dtype), covered)


def coverage(index: Index, queries: Index, scores_QN: np.ndarray, exact_QN: np.ndarray) -> float:
    """The share of all pairs whose interval holds the exact score; a query at a time, for memory."""
    rows_ND, errors = index.take("gradient", range(len(index))), []
    for q in range(len(queries)):
        errors.append(dot_errors(index.layout, queries.take("gradient", [q]), rows_ND.unsqueeze(0), n_rows=len(index)))
    return float((np.abs(scores_QN - exact_QN) <= NORMAL_95 * torch.cat(errors).numpy()).mean())


def row_bytes(layout: Layout, dtype: str) -> int:
    """Of a row's gradient in the files; int8 has a float32 scale for each block."""
    return layout.size * TORCH_DTYPES[dtype].itemsize + (4 * len(layout.blocks) if dtype == "int8" else 0)


def measure(work: Workload, sketches: Sequence[Sketch] = SKETCHES) -> dict[str, Any]:
    """The figures of one workload."""
    with quiet():
        truth = exact(work)
        print(f"exact scores; effective dimension {np.median(truth.dimension_Q):,.0f}", file=sys.stderr, flush=True)
        found = {sketch: [_told(sketch, sketched(work, truth, sketch, seed)) for seed in sketch.seeds] for sketch in sketches}
    names = {sketch: f"{sketch.rank or 'whole'}/{sketch.dtype}/{one[0].row_bytes / 1000:.0f} kB" for sketch, one in found.items()}
    return {
        "dot_spearman": {names[sketch]: _mean([one.dot for one in of_seeds]) for sketch, of_seeds in found.items()},
        "ekfac_stored_spearman": {names[sketch]: _mean([one.ekfac for one in of_seeds]) for sketch, of_seeds in found.items()},
        "by_seed": {names[sketch]: [[round(one.dot, 4), round(one.ekfac, 4)] for one in of_seeds] for sketch, of_seeds in found.items()},
        "coverage": {names[sketch]: [one.covered for one in of_seeds] for sketch, of_seeds in found.items() if sketch in COVERED},
        "dot_to_ekfac_spearman": round(agreement(truth.dot_QN, truth.ekfac_QN), 4),
        "effective_dimension": int(np.median(truth.dimension_Q)),
        "bound": round(bound(truth.dimension_Q, BUDGET), 4),
    }


def measure_by_name(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    return measure(WORKLOADS[name](arguments.rows, arguments.queries))


def _told(sketch: Sketch, found: Found) -> Found:
    print(f"rank {sketch.rank}, {sketch.dtype}: {found}", file=sys.stderr, flush=True)
    return found


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object, the last line of output; kept in benchmarks/results")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="workloads at a time, a process each")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        of_each = dict(zip(WORKLOADS, pool.map(partial(measure_by_name, arguments=arguments), WORKLOADS), strict=True))
    by_figure = {figure: {name: found[figure] for name, found in of_each.items()} for figure in of_each["trained"]}
    for figure, value in by_figure.items():
        print(f"{figure:24} {value}")
    if arguments.json:
        facts = {"rows": arguments.rows, "queries": arguments.queries, "pairs": arguments.rows * arguments.queries, "bound_numbers": BUDGET}
        record("sketch", {**by_figure, **facts}, f"python -m benchmarks.sketch {' '.join(sys.argv[1:])}".strip())


if __name__ == "__main__":
    main()
