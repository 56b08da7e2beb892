"""Cause 1, the solver: what each approximation of the inverse makes of the trace's queries, on one shared reference operator.

A method's own residual is no evidence. Here all are held against `(C + lambda) x = v` with the same C, v being a query's gradient.
K queries · N rows · D numbers of a row · L blocks of the layout · S settings of damping
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from headwater import curvature as curvatures
from headwater import methods
from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.subject import Subject
from headwater.curvature import Curvature, Fisher
from headwater.curvature.conjugate import conjugate_gradients
from headwater.curvature.operators import damped, mean_eigenvalues, reference_operator, reference_rows, relative, spread, working
from headwater.evaluate.figure import mean_figure
from headwater.evaluate.overlap import overlap_Q, rank_correlation_Q
from headwater.evaluate.ranking import Ranking
from headwater.gradient.live import LiveSource
from headwater.index.live import LiveQueries, live_index
from headwater.index.queries import query_index
from headwater.methods.self_influence import influence
from headwater.types import Finding, Index, Layout, Solve, Source, UsageError

CHEAP = ("identity", "fisher", "datainf", "lissa", "lissa_released", "cg", "kfac", "ekfac", "nystrom", "arnoldi")
FACTORS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)  # times the mean eigenvalue: the dampings of the sweep
DEFAULT = 0.1  # of them, the default rule's
MULTIPLICATIONS = 3e11  # of an exact solve: above it no minute is enough
SCANS = 3000  # of all cheap curvatures together, LiSSA's thousand steps among them
EXACT_STEPS, EXACT, NEAR_EXACT = 100, 1e-4, 1e-2  # of conjugate gradients on a live model: steps, aim, and what will do
ROUNDING = 1e-3  # of a bound that every inverse keeps


# -------------------------------------------------------------------------------------------- two facts about solvers


def effective_damping(damping: float, scale: float) -> float:
    """The lambda of `x <- v + (1 - d) x - C x / s`, answered with `x / s`: its fixed point is `(C + d s)^-1 v`, so lambda is `d s`.

    Koh and Liang's form, which FastIF and Han et al. use: "damping 5e-3, scale 1e4" damps by 50.
    """
    return damping * scale


@dataclass(frozen=True)
class Returned:
    """Scores against those of the plain gradient product: the median ratio, and the median over queries of Spearman's correlation."""

    ratio: float
    spearman: float

    @property
    def gradient(self) -> bool:
        """Whether no query could tell the two rankings apart."""
        return self.spearman >= 0.999

    def __str__(self) -> str:
        what = "they are the gradient product under another name" if self.gradient else "they rank differently"
        return f"its scores are {self.ratio:.2f} times the gradient product's, with a rank correlation of {self.spearman:.4f}: {what}"


def returned_gradient(scores_QN: np.ndarray, gradient_QN: np.ndarray) -> Returned:
    """Whether a solver gave back what it was given. The paper's released LiSSA did: 4.00 times the gradient product, Spearman 1.

    Raises UsageError unless both are of the same queries and rows. Cost: two sorts of each query's scores.
    """
    scores_QN, gradient_QN = np.asarray(scores_QN, dtype=np.float64), np.asarray(gradient_QN, dtype=np.float64)
    if scores_QN.shape != gradient_QN.shape or scores_QN.ndim != 2:
        raise UsageError(
            f"scores are {scores_QN.shape}, those of the gradient product {gradient_QN.shape}: expected the same [queries, rows]"
        )
    usable_QN = np.isfinite(scores_QN) & np.isfinite(gradient_QN) & (gradient_QN != 0)
    ratio = float(np.median(scores_QN[usable_QN] / gradient_QN[usable_QN])) if usable_QN.any() else float("nan")
    spearman_Q = rank_correlation_Q(Ranking(scores_QN), Ranking(gradient_QN))
    known_Q = np.isfinite(spearman_Q)
    return Returned(ratio, float(np.median(spearman_Q[known_Q])) if known_Q.any() else float("nan"))


# ------------------------------------------------------------------------------------------------------ what is measured


@dataclass(frozen=True, eq=False)
class Bench:
    """Queries' gradients and the source to solve them on. Everything that is asked of a curvature is asked here."""

    source: Source
    v_KD: Tensor
    exact_feasible: bool

    @cached_property
    def mean_eigenvalue(self) -> float:
        """trace(C) / D of the whole reference operator."""
        return float(mean_eigenvalues(reference_rows(self.source), self.source.layout, joint=True)[0])

    @cached_property
    def at_default_KD(self) -> Tensor | None:
        """The exact solution at the default damping, a tenth of the mean eigenvalue; None where it is not feasible."""
        lambda_L = torch.full((len(self.source.layout.blocks),), DEFAULT * self.mean_eigenvalue, dtype=torch.float64)
        return self.exact(lambda_L)

    def exact(self, damping_L: Tensor) -> Tensor | None:
        """`(C + lambda)^-1 v`: by Woodbury over stored rows, by conjugate gradients on a live model; None where it is not feasible."""
        damping_D = spread(damping_L, self.source.layout)
        if not self.exact_feasible:
            return None
        if isinstance(self.source, LiveSource):
            with self.source.linearised() as product:
                found = conjugate_gradients(damped(product, damping_D), self.v_KD, tolerance=EXACT, max_steps=EXACT_STEPS)
            return found.value if found.residual_K is not None and bool((found.residual_K <= NEAR_EXACT).all()) else None
        root_D = damping_D.sqrt()
        whitened, fisher = Whitened(self.source, 1 / root_D), Fisher(damping=1.0, joint=True)
        return fisher.solve(fisher.fit(whitened), whitened, self.v_KD / root_D).value / root_D

    def measure(self, curvature: Curvature) -> Told:
        state = curvature.fit(self.source)
        solve = curvature.solve(state, self.source, self.v_KD.float() if self.v_KD.dtype == torch.float64 else self.v_KD)  # as a trace does
        damping_L = state["damping"]
        x_KD, damping_D = solve.value.to(self.v_KD), spread(damping_L, self.source.layout).to(self.v_KD)
        product_KD = reference_operator(self.source)[1](x_KD) if bool(torch.isfinite(x_KD).all()) else torch.full_like(x_KD, torch.nan)
        exact_KD = self.exact(damping_L)
        return Told(
            name=curvature.name,
            solve=solve,
            damping_L=damping_L,
            residual_K=relative(product_KD + damping_D * x_KD - self.v_KD, self.v_KD).double().numpy(),
            other_sign_K=relative(product_KD - damping_D * x_KD - self.v_KD, self.v_KD).double().numpy(),
            cosine_K=cosines(x_KD, self.v_KD),
            length_K=(float(damping_L.min()) * x_KD.norm(dim=1) / self.v_KD.norm(dim=1)).double().numpy(),
            error_K=None if exact_KD is None else relative(x_KD - exact_KD, exact_KD).double().numpy(),
            ranks_K=None if exact_KD is None else rank_correlation_Q(self.ranking(x_KD), self.ranking(exact_KD)),
        )

    def ranking(self, x_KD: Tensor) -> Ranking:
        """Of the rows, by their products with solved queries: one scan."""
        return Ranking(torch.cat([-x_KD.to(rows_ND) @ rows_ND.T for _, rows_ND in self.source.blocks("gradient")], dim=1).numpy())


@dataclass(frozen=True, eq=False)
class Told:
    """One curvature on the bench. `other_sign_K`: the residual with `-lambda`; `length_K`: `|x| lambda / |v|`, at most 1 for an inverse."""

    name: str
    solve: Solve
    damping_L: Tensor
    residual_K: np.ndarray
    other_sign_K: np.ndarray
    cosine_K: np.ndarray
    length_K: np.ndarray
    error_K: np.ndarray | None
    ranks_K: np.ndarray | None  # rank correlation of the scores that follow with those of the exact solution

    @property
    def ranks(self) -> float | None:
        return None if self.ranks_K is None or not np.isfinite(self.ranks_K).any() else float(np.nanmedian(self.ranks_K))

    @property
    def residual(self) -> float:
        return float(np.median(self.residual_K))

    @property
    def cosine(self) -> float:
        return float(np.median(self.cosine_K))

    @property
    def error(self) -> float | None:
        return None if self.error_K is None else float(np.median(self.error_K))

    @property
    def diverged(self) -> bool:
        """By its own word, or longer than any `(C + lambda)^-1 v` can be."""
        return self.solve.status == "diverged" or not np.isfinite(self.residual) or bool(np.median(self.length_K) > 1 + ROUNDING)

    @property
    def far_side(self) -> bool:
        """Against the gradient, which no positive curvature is; or a solution of the equation with `-lambda` and of no other."""
        other = float(np.median(self.other_sign_K))
        return self.cosine < 0 or (other < 0.1 and other < 0.1 * self.residual)

    def in_words(self) -> str:
        error = "" if self.error is None else f", {self.error:.2g} of the exact solution's length away from it"
        ranks = "" if self.ranks is None else f"; its ranking correlates with the exact one by {self.ranks:.2f}"
        return f"residual {self.residual:.2g} on the reference operator{error}{ranks}; cosine with the plain gradient {self.cosine:.4f}"


@dataclass(frozen=True, eq=False)
class Whitened:
    """A source whose numbers are scaled one by one: with `lambda^-1/2` a damping per block becomes 1 everywhere."""

    source: Source
    scale_D: Tensor

    @property
    def layout(self) -> Layout:
        return self.source.layout

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        return ((start, rows_ND.double() * self.scale_D) for start, rows_ND in self.source.blocks(feature))

    def __len__(self) -> int:
        return len(self.source)


def cosines(x_KD: Tensor, v_KD: Tensor) -> np.ndarray:
    """[K], NaN where one of the two is zero."""
    return (torch.linalg.vecdot(x_KD, v_KD) / (x_KD.norm(dim=1) * v_KD.norm(dim=1))).double().numpy()


# ------------------------------------------------------------------------------------------------------------- the check


@dataclass(frozen=True)
class Solver:
    """Residual, error and cosine with the gradient of every cheap curvature, and of the one that the trace uses; the damping's weight.

    `fail` only for the curvature that the trace uses: where it returned the gradient (cosine above `same`, that of the exact solution at
    the default damping below `differs`), diverged, or has the damping's sign wrong. What others do is told beside it. At most `queries`
    queries are solved. Above `numbers` stored numbers the trace's own curvature alone is measured.
    """

    name: ClassVar[str] = "solver"
    summary: ClassVar[str] = "residual of every curvature on one reference operator, distance from the exact solve, damping sweep"
    reference: ClassVar[str] = "Koh and Liang 2017, section 3; Li et al. 2024 (arXiv 2409.19998)"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    curvatures: tuple[str, ...] = CHEAP
    queries: int = 8
    numbers: int = 30_000_000  # a scan then takes some 10 ms, and there are some thousands
    same: float = 0.999  # an angle of 2.6 degrees: no ranking of thousands of rows can tell the two apart
    differs: float = 0.99  # an angle of 8 degrees: rankings differ visibly
    agrees: float = 0.3  # rank correlation with the exact solution: below it less than a tenth of the order is shared
    steady: float = 0.5  # rank correlation a factor of 10 away from the default: below it the damping decides more than half of the order

    def passes(self, subject: Subject) -> float:
        if subject.index is None:
            return 1.0
        index, tokens = subject.index, float(np.mean([row.n_tokens for row in subject.rows]))
        parameters = sum(int(np.prod(block.shape)) for block in index.layout.blocks)
        scans = SCANS if len(index) * index.layout.size <= self.numbers else 10
        return scans * self.queries * index.layout.size / (3 * tokens * parameters)

    def __call__(self, subject: Subject) -> Report:
        used, mode = used_curvature(subject)
        stored = self.stored_bench(subject)
        bench = stored if mode == "stored" else self.live_bench(subject)
        told = None if used is None else bench.measure(used)
        beside = [stored.measure(curvatures.get(name)) for name in self.others(subject, told if mode == "stored" else None)]
        sweep = self.sweep(subject, stored)
        findings = [
            nothing_solved(subject) if told is None else self.verdict(told, bench, subject),
            *(self.aside(one, stored) for one in beside),
            self.damping(sweep, told, bench, subject),
        ]
        measured = [*([] if told is None else [told]), *beside]
        plots = [comparison(measured)] if measured else []
        return Report(findings, plots=plots if sweep is None else [sweep.plot(self.place(told, bench)), *plots])

    # ----------------------------------------------------------------------------------------------------------- benches

    def others(self, subject: Subject, told: Told | None) -> list[str]:
        """The curvatures to measure beside the trace's own; none where a scan is costly."""
        costly = len(subject.stored) * subject.stored.layout.size > self.numbers
        return [] if costly else [name for name in self.curvatures if told is None or name != told.name]

    def stored_bench(self, subject: Subject) -> Bench:
        queries = query_gradients(subject, self.queries)
        n_rows, size = len(subject.stored), subject.stored.layout.size
        smaller = min(n_rows, size)
        feasible = smaller * n_rows * size + smaller**3 / 3 <= MULTIPLICATIONS
        return Bench(subject.stored, queries.take("gradient", np.arange(len(queries))).double(), feasible)

    def live_bench(self, subject: Subject) -> Bench:
        """Two queries: each product with the operator is some passes over the rows."""
        source, index = live_source(subject)
        few = query_gradients(subject, min(self.queries, 2))
        queries = LiveQueries(few, source, _some(subject.asked.queries, len(few)), subject.asked.measure)
        v_KD = queries.take("gradient_whole", np.arange(len(queries)))
        return Bench(source, working(v_KD, source), len(index) * source.layout.size <= self.numbers)

    # ---------------------------------------------------------------------------------------------------------- findings

    def verdict(self, told: Told, bench: Bench, subject: Subject) -> Finding:
        """Of the curvature that the trace uses."""
        status, words, step = self.judged(told, bench)
        beside = subject.asked.scores.get("grad_dot")
        own = "" if beside is None else f" {str(returned_gradient(subject.scores.values_QN, beside.values_QN)).capitalize()}."
        because = f"The trace uses {told.name}: {words}{told.in_words()}.{own}"
        return self.found(told, status, because, step)

    def aside(self, told: Told, bench: Bench) -> Finding:
        """Of a curvature that the trace does not use: nothing rests on it."""
        _, words, _ = self.judged(told, bench)
        return self.found(told, "ok", f"Not used by the trace: {words}{told.in_words()}.", None)

    def found(self, told: Told, status: Any, because: str, step: str | None) -> Finding:
        residual = told.residual if np.isfinite(told.residual) else None
        spread_of = None if residual is None else (float(told.residual_K.min()), float(told.residual_K.max()))
        facts = {"value": residual, "unit": "of the right-hand side", "interval": spread_of, "n": len(told.residual_K)}
        return Finding(f"solver: {told.name}", status, because, **facts, next_step=step)

    def judged(self, told: Told, bench: Bench) -> tuple[Any, str, str | None]:
        """(status, what to say first, next step), were the trace to use it."""
        if told.diverged:
            words = (
                f"it diverged (status {told.solve.status}, length {float(np.median(told.length_K)):.2g} of the most that damping allows), "
            )
            return "fail", words, "Raise the scale or the damping, or take a closed form (fisher) or cg."
        if told.far_side:
            words = "its solution lies on the far side, as if the damping were subtracted: "
            return "fail", words, "Look at the sign of the damping in the solver, and solve with fisher or cg meanwhile."
        if told.cosine > self.same and told.name != "identity":
            return self.returned(told, bench)
        if told.ranks is not None and told.ranks < self.agrees:
            words = "it ranks otherwise than the exact solution with its damping: "
            return "warn", words, "Trace with fisher (joint: true) or cg beside it, and ask retraining which of the two is right."
        return "ok", "", None

    def returned(self, told: Told, bench: Bench) -> tuple[Any, str, str | None]:
        exact_KD = bench.at_default_KD
        ratio = float(told.damping_L.max()) / bench.mean_eigenvalue
        step = f"Trace with fisher or cg at a damping near {DEFAULT * bench.mean_eigenvalue:.2g}, or call it what it is: grad_dot."
        if exact_KD is None:
            return "warn", "it returned the gradient, and whether the exact solution would too is not known: ", step
        exact = float(np.median(cosines(exact_KD, bench.v_KD)))
        if exact > self.differs:
            return "ok", f"it returned the gradient, and so does the exact solution (cosine {exact:.4f}): ", None
        why = f"its damping is {ratio:.2g} times the mean eigenvalue" if ratio > 10 else "its steps never left it"
        return "fail", f"this solver returned the gradient ({why}; the exact solution's cosine with it is {exact:.2f}): ", step

    # ----------------------------------------------------------------------------------------------------------- damping

    def sweep(self, subject: Subject, bench: Bench) -> Sweep | None:
        if not bench.exact_feasible:
            return None
        return Sweep(damped_scores(subject.stored, bench.v_KD, bench.mean_eigenvalue, FACTORS), bench.mean_eigenvalue, subject.asked.k)

    def place(self, told: Told | None, bench: Bench) -> float | None:
        """The trace's own damping, in mean eigenvalues."""
        return None if told is None else float(told.damping_L.median()) / bench.mean_eigenvalue

    def damping(self, sweep: Sweep | None, told: Told | None, bench: Bench, subject: Subject) -> Finding:
        """How far the ranking by exact influence depends on a number that nothing in the data decides."""
        if sweep is None:
            why = f"{len(subject.stored):,} rows of {subject.stored.layout.size:,} numbers are too many for an exact solve at each damping."
            return Finding("solver: damping", "unknown", why, next_step="Index fewer rows, or with a smaller sketch, to see it.")
        worst = sweep.nearby()
        place = self.place(told, bench)
        status = "ok" if told is None or worst.value >= self.steady else "warn"
        own = f"The trace's damping is {_range(told.damping_L)}, in the median {place:.2g} mean eigenvalues. " if told and place else ""
        rests = "" if told is not None else f" (the trace ranks by {subject.asked.primary}, which has no damping)"
        because = (
            f"{own}Ten times the default damping, or a tenth of it, leaves a rank correlation of {worst.value:.2f} with the exact ones at "
            f"the default ({DEFAULT:g} mean eigenvalues, {DEFAULT * sweep.mean_eigenvalue:.2g}){rests}; from {FACTORS[0]:g} to "
            f"{FACTORS[-1]:g} it falls to {sweep.correlation_S.min():.2f}, and the first {sweep.k} keep {sweep.overlap_S.min():.0%}."
        )
        step = (
            None
            if status == "ok"
            else "Choose the damping by what retraining says (`headwater truth`, `headwater evaluate`), and report it."
        )
        return Finding("solver: damping", status, because, value=worst.value, interval=worst.interval, n=worst.n, next_step=step)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Exact influence on the stored rows at every damping of `FACTORS`, against that at the default one."""

    scores_SQN: np.ndarray
    mean_eigenvalue: float
    k: int

    @cached_property
    def correlation_SQ(self) -> np.ndarray:
        return np.stack([rank_correlation_Q(Ranking(scores_QN), self._default) for scores_QN in self.scores_SQN])

    @cached_property
    def correlation_S(self) -> np.ndarray:
        return np.nanmean(self.correlation_SQ, axis=1)

    @cached_property
    def overlap_S(self) -> np.ndarray:
        return np.array([np.nanmean(overlap_Q(Ranking(scores_QN), self._default, self.k)) for scores_QN in self.scores_SQN])

    @cached_property
    def _default(self) -> Ranking:
        return Ranking(self.scores_SQN[FACTORS.index(DEFAULT)])

    def nearby(self) -> Any:
        """Mean over queries of the worse of the two neighbours of the default."""
        at = FACTORS.index(DEFAULT)
        return mean_figure(np.minimum(self.correlation_SQ[at - 1], self.correlation_SQ[at + 1]))

    def plot(self, place: float | None) -> Plot:
        series = [
            Series("rank correlation", list(FACTORS), self.correlation_S.tolist()),
            Series(f"overlap of the first {self.k}", list(FACTORS), self.overlap_S.tolist()),
        ]
        note = "" if place is None else f"The trace's damping is {place:.2g} mean eigenvalues. "
        note += "What stays the same as damping moves from its default of 0.1 mean eigenvalues; far to the right lies the gradient product."
        return Plot("Damping sweep", "damping / mean eigenvalue", "agreement with the default", series, log_x=True, note=note)


def damped_scores(index: Index, v_KD: Tensor, mean_eigenvalue: float, factors: Sequence[float]) -> np.ndarray:
    """[S, K, N] influence with the exact joint Fisher matrix of the stored rows, at each factor times its mean eigenvalue."""
    found = []
    for factor in factors:
        fisher = Fisher(damping=factor * mean_eigenvalue, joint=True)
        x_KD = fisher.solve(fisher.fit(index), index, v_KD).value
        found.append((index.products("gradient", x_KD.float()) / -len(index)).numpy())
    return np.stack(found)


def nothing_solved(subject: Subject) -> Finding:
    return Finding("solver", "ok", f"The trace ranks by {subject.asked.primary}, which solves nothing: there is no solver to doubt.")


def comparison(told: Sequence[Told]) -> Plot:
    names = [one.name for one in told]
    series = [
        Series("residual, at most 2", names, [min(one.residual, 2.0) if np.isfinite(one.residual) else None for one in told]),
        Series("cosine with the gradient", names, [one.cosine if np.isfinite(one.cosine) else None for one in told]),
    ]
    return Plot(
        "Solvers on one reference operator", "curvature", "", series, kind="bar", note="A residual of 1 is that of no answer at all."
    )


# ---------------------------------------------------------------------------------------------------- what the trace used


def used_curvature(subject: Subject) -> tuple[Curvature | None, str]:
    """(the curvature of the trace's primary method, where it solves): None and "stored" for a method that solves nothing."""
    method: Any = methods.get(subject.asked.primary, **subject.asked.method_options)
    if getattr(method, "curvature", None) is None:
        return None, "stored"
    inner = influence(method.curvature, getattr(method, "mode", "stored"))
    return inner.curvature, "stored" if inner.mode == "stored" else "live"


def query_gradients(subject: Subject, most: int) -> Any:
    """The first so many queries as a trace has them."""
    some = _some(subject.asked.queries, most)
    return query_index(subject.session, subject.stored.layout, some, subject.asked.measure, extra=subject.stored.spec.extra)


def live_source(subject: Subject) -> tuple[Any, Index]:
    opened = live_index(subject.stored, subject.session, subject.rows)
    return opened.source, opened


def _some(queries: Sequence[Any], most: int) -> Sequence[Any]:
    """Evenly over all of them."""
    return list(queries)[:: max(1, -(-len(queries) // most))][:most]


def _range(damping_L: Tensor) -> str:
    least, largest = float(damping_L.min()), float(damping_L.max())
    return f"{least:.2g}" if largest <= 1.001 * least else f"{least:.2g} to {largest:.2g} by block"
