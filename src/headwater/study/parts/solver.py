"""Cause 1, the solver: is Theorem 1's regime there, what does each solver make of a gradient, and what does the damping decide?

Q queries · N training rows · D numbers of a gradient row · T weight tensors · C = (1/N) sum_n g_n g_n' of one tensor
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater import curvature
from headwater.audit.check import Plot, Series
from headwater.curvature.fisher import Fisher
from headwater.curvature.operators import Operator, damped, fisher_operator, relative, spread
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.overlap import rank_correlation_Q
from headwater.evaluate.ranking import Ranking
from headwater.gradient.live import LiveSource
from headwater.methods.shared import divide, whole
from headwater.study.cells import Cell, Place
from headwater.study.parts.example_space import DAMPING, Piece, fisher, parts, pieces
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.points import METRICS, marks, variant
from headwater.study.world import World
from headwater.types import HeadwaterError, Layout, Source, UsageError

FACTORS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
MADE_OF = ("cosine to gradient", "cosine to gradient within a tensor", "rank correlation to dot", "rank correlation to exact Fisher",
           "residual", "joint residual")  # fmt: skip
ITERATIVE = ("lissa", "cg")
ROUNDING = 1e-12  # of the largest eigenvalue: what is below it is zero


@dataclass(frozen=True)
class Solver:
    """Three measurements of cause 1, on the stored rows of the final model (their loss is the response's, summed).

    Method "theorem 1": the paper's Theorem 1 has (C + lambda)^-1 near 1/lambda where ||C|| << lambda. For each weight tensor, with the
    paper's lambda (a tenth of its mean eigenvalue): "mean eigenvalue over damping" (of those that are not zero), "largest eigenvalue over
    damping", "rank over rows"; and in units of 1/lambda the bound ||C||/lambda^2 ("bound on the error") beside the error itself,
    ||1/lambda - (C + lambda)^-1|| = ||C|| / (lambda (||C|| + lambda)) ("error"). Cells have the median over tensors. A bound above 1 says
    nothing: the error of the answer 0 is 1.

    A method for each solver, at the default damping, mean over `queries` of the queries. The reference is the exact damped empirical Fisher
    matrix of each tensor ("fisher"), which is what DataInf and the paper's LiSSA approximate. "cosine to gradient" is that of the solved
    vector, over all tensors; "... within a tensor" the median over tensors: where it is near 1, all that was done is to weigh the tensors.
    "rank correlation to dot" is that of the scores with the plain gradient product's, "... to exact Fisher" with the reference's.
    "residual" is `||(C + lambda) x - v|| / ||v||` on the reference with the solver's own lambda; "joint residual" on the Fisher matrix of
    all tensors together, which the package's LiSSA and CG solve. EK-FAC's curvature is that of labels drawn from the model: neither is its
    equation.
    "lissa_released" is the released code's recursion.

    Method "fisher", variant "damping=...": accuracy, cover and AUROC of the reference at each of `factors` times the tensor's mean
    eigenvalue, over all queries.

    Cost: a Gram matrix and its decomposition a tensor; `lissa_steps` scans. LiSSA and CG are left out above `numbers` stored numbers.
    """

    name = "solver"
    summary = "Theorem 1's regime, what every solver makes of the gradient, and a damping sweep of the exact Fisher matrix"
    metrics = (
        *("mean eigenvalue over damping", "largest eigenvalue over damping", "rank over rows", "bound on the error", "error"),
        *("cosine to gradient", "cosine to gradient within a tensor", "rank correlation to dot", "rank correlation to exact Fisher"),
        *("residual", "joint residual", "accuracy", "cover", "auroc"),
    )
    reference = "Li et al. 2024, section 4.1 (Theorem 1)"

    solvers: tuple[str, ...] = ("datainf", "lissa_released", "lissa", "cg", "fisher", "ekfac")
    factors: tuple[float, ...] = FACTORS
    queries: int = 8
    lissa_steps: int = 1000
    numbers: int = 30_000_000

    def unfit(self, world: World) -> str:
        return ""

    def __call__(self, world: World) -> Outcome:
        here, bench = place(self, world), bench_of(world, self.queries)
        tensors = list(pieces(world.index.layout, bench.rows_ND, -whole(world.asked, "gradient")))
        told = {name: self.told(world, bench, name) for name in self.solvers}
        swept = sweep(world, tensors, self.factors)
        cells = [*theorem(here, tensors), *solver_cells(here, told), *sweep_cells(here, swept)]
        regimes = [regime(piece) for piece in tensors]
        facts = {"largest eigenvalue over damping": [round(one.largest, 2) for one in regimes]}
        return Outcome(cells, plots=[sweep_plot(swept), solver_plot(told)], facts=facts)

    def told(self, world: World, bench: Bench, name: str) -> dict[str, Figure] | str:
        """What a solver makes of the queries, or why it does not."""
        if name in ITERATIVE and bench.rows_ND.numel() > self.numbers:
            return f"{len(bench.rows_ND):,} rows of {bench.rows_ND.shape[1]:,} numbers are too many for the scans it takes"
        options = {"max_steps": min(self.lissa_steps, 200 if world.size.is_quick else self.lissa_steps)} if name == "lissa" else {}
        try:
            return bench.measure(*solved(world, name, bench.v_KD, options))
        except HeadwaterError as error:
            return str(error)


# ------------------------------------------------------------------------------------------------------------ theorem 1


@dataclass(frozen=True)
class Regime:
    """Of one tensor, in units of its damping: eigenvalues of C that are not zero, their mean and the largest; their number over N."""

    mean: float
    largest: float
    rank: float

    @property
    def bound(self) -> float:
        """`||C|| / lambda^2`, times lambda."""
        return self.largest

    @property
    def error(self) -> float:
        """`||1/lambda - (C + lambda)^-1||`, times lambda."""
        return self.largest / (1 + self.largest)


def regime(piece: Piece, *, factor: float = DAMPING) -> Regime:
    values_N = piece.eigenvalues_N / (factor * piece.mean_eigenvalue)
    positive_M = values_N[values_N > ROUNDING * values_N.max()]
    return Regime(float(positive_M.mean()), float(positive_M.max()), len(positive_M) / len(values_N))


def theorem(here: Place, tensors: Sequence[Piece]) -> Iterator[Cell]:
    regimes = [regime(piece) for piece in tensors]
    named = {
        "mean eigenvalue over damping": [one.mean for one in regimes],
        "largest eigenvalue over damping": [one.largest for one in regimes],
        "rank over rows": [one.rank for one in regimes],
        "bound on the error": [one.bound for one in regimes],
        "error": [one.error for one in regimes],
    }
    for metric, found in named.items():
        unit = "1/lambda" if "error" in metric else None
        yield here.cell("theorem 1", metric, float(np.median(found)), n=len(found), over="tensors", unit=unit)


# -------------------------------------------------------------------------------------------------------------- solvers


@dataclass(frozen=True, eq=False)
class Bench:
    """Some queries' gradients with the sign that makes a product with a row's positive for a proponent, and the rows."""

    index: Source
    rows_ND: Tensor
    v_KD: Tensor
    exact: Ranking = field(repr=False)

    def measure(self, x_KD: Tensor, damping_L: Tensor) -> dict[str, Figure]:
        """By the names of `MADE_OF`, mean over queries. float64."""
        x_KD, layout = x_KD.double(), self.index.layout
        ranking, plain = (Ranking((some_KD @ self.rows_ND.T).numpy()) for some_KD in (x_KD, self.v_KD))
        found = (
            cosines(x_KD, self.v_KD),
            cosine_within(layout, x_KD, self.v_KD),
            rank_correlation_Q(ranking, plain),
            rank_correlation_Q(ranking, self.exact),
            self.residual(x_KD, damping_L, joint=False),
            self.residual(x_KD, damping_L, joint=True),
        )
        return {name: mean_figure(values_K) for name, values_K in zip(MADE_OF, found, strict=True)}

    def residual(self, x_KD: Tensor, damping_L: Tensor, *, joint: bool) -> np.ndarray:
        operator: Operator = damped(fisher_operator(self.index, joint=joint), spread(damping_L, self.index.layout))
        return relative(operator(x_KD) - self.v_KD, self.v_KD).numpy()


def bench_of(world: World, queries: int) -> Bench:
    """Evenly over the queries."""
    rows_ND, all_QD = whole(world.index, "gradient").double(), -whole(world.asked, "gradient").double()
    v_KD = all_QD[:: max(1, -(-len(all_QD) // queries))][:queries]
    exact = Fisher()
    x_KD = exact.solve(exact.fit(world.index), world.index, v_KD).value
    return Bench(world.index, rows_ND, v_KD, Ranking((x_KD @ rows_ND.T).numpy()))


def solved(world: World, name: str, v_KD: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """([K, D] a solver's answer, [L] its damping): EK-FAC's on the model, any other's on the stored rows."""
    found = curvature.get(name, **options)
    live = name == "ekfac"
    source = LiveSource(world.session, world.rows, world.index.layout, keep=("sampled",)) if live else world.index
    state = found.fit(source)
    return found.solve(state, source, v_KD.float() if live else v_KD).value, state["damping"]


def cosines(x_KD: Tensor, v_KD: Tensor) -> np.ndarray:
    """[K]; 0 where one of the two is zero."""
    return divide(torch.linalg.vecdot(x_KD, v_KD), x_KD.norm(dim=1) * v_KD.norm(dim=1)).numpy()


def cosine_within(layout: Layout, x_KD: Tensor, v_KD: Tensor) -> np.ndarray:
    """[K] the median over tensors of the cosine within one."""
    return np.median([cosines(x_KD[:, part], v_KD[:, part]) for _, part in parts(layout)], axis=0)


def solver_cells(here: Place, told: Mapping[str, dict[str, Figure] | str]) -> Iterator[Cell]:
    for name, found in told.items():
        for metric in MADE_OF:
            yield here.missing(name, metric, found) if isinstance(found, str) else here.cell(name, metric, found[metric])


def solver_plot(told: Mapping[str, dict[str, Figure] | str]) -> Plot:
    known = {name: found for name, found in told.items() if not isinstance(found, str)}
    shown = [metric for metric in MADE_OF if "residual" not in metric]
    series = [Series(metric, list(known), [_finite(found[metric].value) for found in known.values()]) for metric in shown]
    return Plot("What each solver makes of the gradient", "solver", "", series, kind="bar", note="1 with the gradient: nothing was solved.")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# -------------------------------------------------------------------------------------------------------- damping sweep


def sweep(world: World, tensors: Sequence[Piece], factors: Sequence[float]) -> dict[float, dict[str, Figure]]:
    """{factor: figures} of the exact Fisher matrix of each tensor at so many times its mean eigenvalue, over all queries."""
    found = {}
    for factor in factors:
        products_QN = sum(fisher(piece, factor=factor).products_QN for piece in tensors)
        if not isinstance(products_QN, Tensor):
            raise UsageError(
                "every gradient of the index is zero, so there is nothing to solve. Likely cause: an adapter that was not trained"
            )
        found[factor] = marks(products_QN.numpy(), world.labels, world.k).figures()
    return found


def sweep_cells(here: Place, swept: Mapping[float, Mapping[str, Figure]]) -> Iterator[Cell]:
    for factor, figures in swept.items():
        for metric in METRICS:
            yield here.cell("fisher", metric, figures[metric], variant=variant(damping=f"{factor:g}"))


def sweep_plot(swept: Mapping[float, Mapping[str, Figure]]) -> Plot:
    series = []
    for metric in METRICS:
        figures = [found[metric] for found in swept.values()]
        low, high = ([None if one.interval is None else one.interval[side] for one in figures] for side in (0, 1))
        series.append(Series(metric, list(swept), [_finite(one.value) for one in figures], low, high))
    note = "The paper's damping is 0.1. Far to the right, each tensor's gradient product over its damping: nothing is solved."
    return Plot("Exact Fisher matrix by damping", "damping / mean eigenvalue", "", series, log_x=True, note=note)
