"""How near influence comes to the exact damped Gauss-Newton influence, on the LoRA workload of the peers' benchmark.

    python -m benchmarks.accuracy --json [--rows 24] [--queries 2] [--minutes 60] [--threads 1]     the reference, then every method

The reference solves `(C + lambda) x = h` for each query by conjugate gradients to a relative residual of 1e-8 in float64, C the joint
Gauss-Newton matrix of the LoRA parameters over the rows, lambda a tenth of the mean eigenvalue of each block. It knows no
approximation, and takes long, so it is kept in `benchmarks/results/accuracy_reference.npz`, which `python -m benchmarks.peers` reads.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.record import RESULTS, record
from benchmarks.workload import lora, queries, rows
from headwater.curvature import get
from headwater.curvature.conjugate import conjugate_gradients
from headwater.curvature.ekfac import EKFAC
from headwater.curvature.kfac import KFAC
from headwater.curvature.kronecker import solve_in_basis
from headwater.curvature.operators import Operator, damped, relative, spread
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.live import LiveIndex, LiveQueries
from headwater.index.memory import MemoryIndex
from headwater.methods.influence import Influence
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import quiet
from headwater.types import Example, State

REFERENCE = RESULTS / "accuracy_reference.npz"
TOLERANCE, MAX_STEPS = 1e-8, 3000
DRAWS = 100  # of labels for each row, for the reference's preconditioner
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("identity", {}),
    "kfac": ("kfac", {}),
    "ekfac": ("ekfac", {}),
    "ekfac_empirical": ("ekfac", {"labels": "true"}),
    "ekfac_two_labels": ("ekfac", {"basis_labels": "true"}),
    "ekfac_cg": ("ekfac_cg", {}),
    "fisher": ("fisher", {}),
    "fisher_joint": ("fisher", {"joint": True}),
    "datainf": ("datainf", {}),
}
"""What is held against the reference: a curvature and its options, by the name that its figure gets."""


def named(examples: list[Example], name: str) -> list[Example]:
    return [replace(example, id=f"{name}-{i}") for i, example in enumerate(examples)]


def sides(n_rows: int, n_queries: int, dtype: torch.dtype) -> tuple[LiveIndex, LiveQueries]:
    """The workload's rows and queries with its LoRA model at hand."""
    from benchmarks.indexing import model

    network = lora(model()).to(dtype).eval()
    session = Session(network, None, "causal-lm", name="benchmark")
    layout = make_layout(network, find_scope(network, include=("*lora_*",)), SketchSpec(rank=None))
    source = LiveSource(session, named(rows(n_rows), "row"), layout, keep=("true", "sampled"))
    index = LiveIndex(MemoryIndex([row.id for row in source.examples], layout, "loss", {}), source)
    asked = named(queries(n_queries), "query")
    stored = MemoryIndex([query.id for query in asked], layout, "measure", {})
    return index, LiveQueries(stored, source, asked, measures.get("response_log_probability"))


def reference(n_rows: int, n_queries: int, *, minutes: float = 60, log: Any = sys.stderr) -> tuple[np.ndarray, float]:
    """([Q, N] exact scores, the largest residual). Each step's residual goes to the log."""
    index, asked = sides(n_rows, n_queries, torch.float64)
    state = EKFAC(precision="float32").fit(index.source)
    b_QD, start = asked.take("gradient_whole", range(n_queries)), time.perf_counter()
    precondition = preconditioner(index.source, state)
    with index.source.linearised() as product:
        operator = damped(product, spread(state["damping"], index.source.layout))

        def told(r_KD: Tensor) -> Tensor:
            largest = float(relative(r_KD, b_QD[: len(r_KD)]).max())
            print(f"{time.perf_counter() - start:.0f} s: residual about {largest:.1e}", file=log, flush=True)
            return precondition(r_KD)

        solve = conjugate_gradients(
            operator,
            b_QD,
            precondition=told,
            tolerance=TOLERANCE,
            max_steps=MAX_STEPS,
            x0=precondition(b_QD),
            stop=lambda: time.perf_counter() - start > 60 * minutes,
        )
    assert solve.residual_K is not None
    scores_QN = index.products("gradient_whole", solve.value).double().numpy() / -n_rows
    print(f"reference: {solve.status} in {solve.steps} steps, residual {float(solve.residual_K.max()):.1e}", file=log, flush=True)
    return scores_QN, float(solve.residual_K.max())


def preconditioner(source: LiveSource, state: State) -> Operator:
    """`v -> ((F + K) / 2 + lambda)^-1 v`: F the Fisher matrix of `DRAWS` labels drawn for each row, joint over all blocks, K K-FAC.

    K is solved in its basis, F's few thousand rows are put on top by Woodbury. What K-FAC leaves out, the products between blocks, is in F;
    what too few draws leave out is in K.
    """
    layout = source.layout
    kfac = {**KFAC(precision="float32").fit(source), "damping": state["damping"]}
    kfac["eigenvalues"] = kfac["eigenvalues"] / 2
    draws = [rows_BD for seed in range(DRAWS) for _, rows_BD in replayed(source, seed).rows("sampled")]
    rows_SD = torch.cat(draws).div_((2 * sum(map(len, draws))) ** 0.5)
    solved_SD = torch.cat([solve_in_basis(kfac, layout, some_SD) for some_SD in rows_SD.split(128)])
    factor_SS = torch.linalg.cholesky(torch.eye(len(rows_SD), dtype=rows_SD.dtype) + rows_SD @ solved_SD.T)

    def apply(v_KD: Tensor) -> Tensor:
        kfac_KD = solve_in_basis(kfac, layout, v_KD)
        return kfac_KD - torch.cholesky_solve(rows_SD @ kfac_KD.T, factor_SS).T @ solved_SD

    return apply


def replayed(source: LiveSource, seed: int) -> LiveSource:
    """The same rows, labels drawn anew."""
    return LiveSource(source.session, source.examples, source.layout, seed=seed + 1)


def agreement(scores_QN: np.ndarray, exact_QN: np.ndarray) -> float:
    """Spearman over rows, mean over queries."""
    return float(np.mean([spearmanr(a_N, b_N).statistic for a_N, b_N in zip(scores_QN, exact_QN, strict=True)]))


def scores(name: str, options: dict[str, Any], index: LiveIndex, asked: LiveQueries) -> tuple[np.ndarray, dict[str, Any]]:
    method = Influence(get(name, **options), mode="exact")
    found = method.score(method.fit(index), index, asked)
    return found.values_QN, found.provenance["solve"]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with quiet():
        if not arguments.kept:
            exact_QN, residual = reference(arguments.rows, arguments.queries, minutes=arguments.minutes)
            np.savez(REFERENCE, scores_QN=exact_QN, rows=arguments.rows, queries=arguments.queries, residual=residual)
        with np.load(REFERENCE) as kept:
            exact_QN, residual = kept["scores_QN"], float(kept["residual"])
        index, asked = sides(exact_QN.shape[1], exact_QN.shape[0], torch.float32)
        found = {label: scores(name, options, index, asked) for label, (name, options) in EXACT.items()}
    return {
        "rows": exact_QN.shape[1],
        "queries": exact_QN.shape[0],
        "reference_residual": residual,
        "spearman": {name: round(agreement(values_QN, exact_QN), 4) for name, (values_QN, _) in found.items()},
        "solves": {name: solve for name, (_, solve) in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object, the last line of output; kept in benchmarks/results")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="after which the reference is taken as it is, its residual beside it")
    parser.add_argument("--kept", action="store_true", help="take the reference that is kept, and score against it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    for name, value in result["spearman"].items():
        print(f"{name:14} {value:.3f}")
    if arguments.json:
        record("accuracy", result, command=f"python -m benchmarks.accuracy {' '.join(sys.argv[1:])}".strip())


if __name__ == "__main__":
    main()
