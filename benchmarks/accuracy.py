"""How near influence comes to the exact damped Gauss-Newton influence, on the LoRA workload of the peers' benchmark.

    python -m benchmarks.accuracy --json [--rows 24] [--queries 2] [--minutes 60] [--threads 2]     the reference, then every method

The reference solves `(C + lambda) x = h` for each query by conjugate gradients to a relative residual of 1e-8 in float64, C the joint
Gauss-Newton matrix of the LoRA parameters over the rows, lambda a tenth of the mean eigenvalue of each block. It knows no
approximation, and takes long, so it is kept in `benchmarks/results/accuracy_reference.npz`, which `python -m benchmarks.peers` reads.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
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
from headwater.curvature.kronecker import accumulate
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
from headwater.types import Example

REFERENCE = RESULTS / "accuracy_reference.npz"
TOLERANCE, MAX_STEPS = 1e-8, 3000
DRAWS = 400  # of labels for each row, for the reference's preconditioner
TOGETHER = 4096  # of them that are multiplied together
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("identity", {}),
    "kfac": ("kfac", {}),
    "ekfac": ("ekfac", {}),
    "ekfac_empirical": ("ekfac", {"labels": "true"}),
    "ekfac_one_draw": ("ekfac", {"basis_labels": "sampled"}),
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
    if dtype == torch.float64:
        compute_norms_in_float64(network)
    session = Session(network, None, "causal-lm", name="benchmark")
    layout = make_layout(network, find_scope(network, include=("*lora_*",)), SketchSpec(rank=None))
    source = LiveSource(session, named(rows(n_rows), "row"), layout, keep=("true", "sampled"))
    index = LiveIndex(MemoryIndex([row.id for row in source.examples], layout, "loss", {}), source)
    asked = named(queries(n_queries), "query")
    stored = MemoryIndex([query.id for query in asked], layout, "measure", {})
    return index, LiveQueries(stored, source, asked, measures.get("response_log_probability"))


def compute_norms_in_float64(network: torch.nn.Module) -> None:
    """transformers' RMSNorm computes in float32 whatever the model's dtype: no residual would come below 1e-7."""
    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norm: Any = module
            shape, epsilon = norm.weight.shape, norm.variance_epsilon
            norm.forward = partial(torch.nn.functional.rms_norm, normalized_shape=shape, weight=norm.weight, eps=epsilon)


def reference(n_rows: int, n_queries: int, *, minutes: float = 60, log: Any = sys.stderr) -> tuple[np.ndarray, float]:
    """([Q, N] exact scores, the largest residual). Each step's residual goes to the log."""
    index, asked = sides(n_rows, n_queries, torch.float64)
    start, state = time.perf_counter(), EKFAC(precision="float32").fit(index.source)
    damping_D = spread(state["damping"], index.source.layout)
    b_QD, precondition = asked.take("gradient_whole", range(n_queries)), preconditioner(n_rows, damping_D)
    print(f"{time.perf_counter() - start:.0f} s: the preconditioner is made", file=log, flush=True)
    with index.source.linearised() as product:
        operator = damped(product, damping_D)

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


def preconditioner(n_rows: int, damping_D: Tensor) -> Operator:
    """`v -> (F + lambda)^-1 v`, F the joint Fisher matrix of `DRAWS` draws of labels for each row, as a dense Cholesky factor in float32.

    The more draws for each direction above lambda, the nearer F is to the Gauss-Newton matrix, whatever its spectrum. Divided by lambda on
    both sides the matrix is `I + F'`, which float32 holds. Memory 8 D^2 bytes at the peak; cost `DRAWS` N D^2 + D^3 / 3 multiplications.
    """
    source = sides(n_rows, 1, torch.float32)[0].source
    copies = [replace(row, id=f"{row.id}/{k}") for k in range(DRAWS) for row in source.examples]  # each draws its own labels
    scale_D = damping_D.rsqrt().float()
    total_DD, waiting = torch.zeros(len(scale_D), len(scale_D)), list[Tensor]()
    for _, rows_BD in LiveSource(source.session, copies, source.layout).rows("sampled"):
        waiting.append(rows_BD * scale_D)
        if sum(map(len, waiting)) >= TOGETHER:
            accumulate(total_DD, torch.cat(waiting))
            waiting.clear()
    accumulate(total_DD, torch.cat([*waiting, torch.zeros(0, len(scale_D))]))
    total_DD /= len(copies)
    total_DD.diagonal().add_(1)
    factor_DD = torch.linalg.cholesky(total_DD, upper=True)
    del total_DD
    return lambda v_KD: (torch.cholesky_solve((v_KD.float() * scale_D).T, factor_DD, upper=True).T * scale_D).to(v_KD)


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
