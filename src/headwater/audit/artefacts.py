"""Artefacts: a property of rows that has nothing to do with the answer, and that influence follows all the same.

Q queries · N rows · B resamples or permutations · 10 deciles
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.subject import Subject
from headwater.evaluate.figure import Figure, mean_figure
from headwater.methods.lexical import tokenize
from headwater.rank.hubs import benjamini_hochberg
from headwater.types import Finding, UsageError

DECILES = 10
FEWEST_ROWS = 20  # two a decile


@dataclass(frozen=True)
class Artefacts:
    """Every property of a row against influence, and against the length of the row's gradient alone, which no query has a part in.

    A property is doubtful where |influence| follows it (Spearman's correlation above `strong`, `shared` for the overlap with the query, in
    the mean over queries; q below `level`, Benjamini-Hochberg over all properties). Properties: tokens, the share of a row's words that the
    query has, loss, copies, each source, and the subject's own `features`. Copies of a row count once. p: rows permuted, the same for every
    query.
    """

    name: ClassVar[str] = "artefacts"
    summary: ClassVar[str] = "does influence follow length, overlap, source, copies, loss, or a column of yours?"
    reference: ClassVar[str] = "Han et al. 2020 (arXiv 2005.06676), section 6"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    strong: float = 0.5  # a quarter of the variance of the ranks
    shared: float = 0.8  # of overlap: rows that answer a query share words with it, and only a ranking that is nearly this one is doubtful
    level: float = 0.05
    permutations: int = 499
    sources: int = 5  # the largest ones

    def passes(self, subject: Subject) -> float:
        return 0.05

    def __call__(self, subject: Subject) -> Report:
        rows = first_of_each(subject)
        if len(rows) < FEWEST_ROWS:
            few = f"{len(rows)} different rows, and {FEWEST_ROWS} are needed for a curve by deciles."
            return Report([Finding("artefacts", "unknown", few, next_step="Trace on more rows.")])
        values_QN = subject.scores.values_QN[:, rows]
        norms_QN = np.broadcast_to(gradient_norms(subject)[rows], values_QN.shape)
        found, control = {}, {}
        for name, feature in features(subject, self.sources).items():
            feature_QN = np.broadcast_to(feature, subject.scores.values_QN.shape)[:, rows]
            found[name] = artefact(values_QN, feature_QN, permutations=self.permutations, seed=subject.seed)
            control[name] = artefact(norms_QN, feature_QN, permutations=0, seed=subject.seed)
        q = dict(zip(found, benjamini_hochberg(np.array([one.p for one in found.values()])), strict=True))
        findings = [self.finding(name, one, control[name], float(q[name])) for name, one in found.items()]
        return Report(findings, plots=[plot({name: one for name, one in found.items() if one.measured})])

    def finding(self, name: str, found: Artefact, control: Artefact, q: float) -> Finding:
        if not found.measured:
            because = f"Every row has the same {name}, or no query ranks the rows: there is nothing that influence could follow."
            return Finding(f"artefacts: {name}", "ok", because, n=0)
        follows = found.follows
        surely = abs(follows.value) > (self.shared if name == "overlap" else self.strong) and q < self.level
        norm = control.follows.value
        because = (
            f"|influence| follows {name} with a rank correlation of {follows.value:.2f} (q = {q:.2g}), bends by {found.curvature} over the "
            f"ranks from lowest to highest score, and {found.enrichment.value:+.3g} of it in the highest tenth (mean {found.mean:.3g}); "
            f"the length of the gradient alone follows it with {norm:.2f}."
        )
        by_length = abs(norm) >= abs(follows.value) - 0.1
        mend = (
            "Trace with a method that normalises (grad_cos, relatif): the gradient's length does this."
            if by_length
            else (f"Look at the rows named: do they say something of the answer, or only share {name}? Remove them and see (removal).")
        )
        facts = {"value": follows.value, "unit": "rank correlation", "interval": follows.interval, "n": follows.n}
        return Finding(f"artefacts: {name}", "warn" if surely else "ok", because, **facts, next_step=mend if surely else None)


# ------------------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True, eq=False)
class Artefact:
    """What influence has to do with one property of rows. All by query; the figures are means over those where they are defined.

    `deciles_QT`: the property's mean in each tenth of the rows, from the lowest score to the highest. `curvature_Q`: a of the least-squares
    parabola `a x^2 + b x + c` over the ranks, x from -1 to 1: positive where rows that matter, either way, have more of it. `follows_Q`:
    Spearman's correlation with |influence|. `enrichment_Q`: its mean in the highest tenth of the scores less that of all rows.
    """

    deciles_QT: np.ndarray
    curvature_Q: np.ndarray
    follows_Q: np.ndarray
    enrichment_Q: np.ndarray
    mean: float
    p: float
    seed: int = 0

    @property
    def measured(self) -> bool:
        return bool(np.isfinite(self.follows_Q).any())

    @cached_property
    def curvature(self) -> Figure:
        return mean_figure(self.curvature_Q, seed=self.seed)

    @cached_property
    def follows(self) -> Figure:
        return mean_figure(self.follows_Q, seed=self.seed)

    @cached_property
    def enrichment(self) -> Figure:
        return mean_figure(self.enrichment_Q, seed=self.seed)


def artefact(values_QN: np.ndarray, feature_QN: np.ndarray, *, permutations: int = 499, seed: int = 0) -> Artefact:
    """A property of rows (of pairs, for one that depends on the query) against scores. NaN in either takes no part.

    p, two-sided: how often the mean correlation with |influence| is as far from 0 when the property's values are dealt to other rows, the
    same deal for every query. The intervals are bootstraps over queries. Raises UsageError unless both are [queries, rows]. Cost: two sorts
    of each query's scores, and Q N multiplications a permutation.
    """
    values_QN, feature_QN = np.asarray(values_QN, dtype=np.float64), np.asarray(feature_QN, dtype=np.float64)
    if values_QN.shape != feature_QN.shape or values_QN.ndim != 2:
        raise UsageError(f"scores are {values_QN.shape}, the property {feature_QN.shape}: expected the same [queries, rows]")
    known_QN = np.isfinite(values_QN) & np.isfinite(feature_QN)
    lines = [
        _of_query(values_N[known_N], feature_N[known_N])
        for values_N, feature_N, known_N in zip(values_QN, feature_QN, known_QN, strict=True)
    ]
    deciles, curvature, follows, enrichment = (np.array(column) for column in zip(*lines, strict=True))
    mean = float(feature_QN[known_QN].mean()) if known_QN.any() else float("nan")
    p = _permutation_p(np.abs(values_QN), feature_QN, known_QN, permutations, seed)
    return Artefact(deciles, curvature, follows, enrichment, mean, p, seed)


def _of_query(values_n: np.ndarray, feature_n: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    if len(values_n) < DECILES or np.ptp(values_n) == 0 or np.ptp(feature_n) == 0:
        return np.full(DECILES, np.nan), np.nan, np.nan, np.nan
    order = np.argsort(values_n, kind="stable")
    tenths = np.array_split(feature_n[order], DECILES)
    x_n = 2 * (rankdata(values_n) - 1) / (len(values_n) - 1) - 1
    a = float(np.polynomial.polynomial.polyfit(x_n, feature_n, 2)[2])
    unit = _standard(rankdata(np.abs(values_n))) @ _standard(rankdata(feature_n))
    return np.array([tenth.mean() for tenth in tenths]), a, float(unit), float(tenths[-1].mean() - feature_n.mean())


def _standard(ranks_n: np.ndarray) -> np.ndarray:
    """Centred and of unit length; zeros where all ranks are one."""
    centred_n = ranks_n - ranks_n.mean()
    length = np.linalg.norm(centred_n)
    return centred_n / length if length > 0 else centred_n


def _permutation_p(sizes_QN: np.ndarray, feature_QN: np.ndarray, known_QN: np.ndarray, permutations: int, seed: int) -> float:
    """NaN without permutations, or where no query is measured. Over the rows that every measured query knows."""
    rows = known_QN[known_QN.any(1)].all(0)
    if permutations < 1 or rows.sum() < DECILES:
        return float("nan")
    x_Qn, y_Qn = (
        [_standard(rankdata(line_n)) for line_n in side_QN[:, rows]] for side_QN in (sizes_QN[known_QN.any(1)], feature_QN[known_QN.any(1)])
    )
    x_Qn, y_Qn = np.stack(x_Qn), np.stack(y_Qn)
    if not (y_Qn.any() and x_Qn.any()):
        return float("nan")
    seen = abs(float((x_Qn * y_Qn).sum()))
    rng = np.random.default_rng([seed, 23])
    deals = (rng.permutation(x_Qn.shape[1]) for _ in range(permutations))
    beyond = sum(abs(float((x_Qn * y_Qn[:, deal]).sum())) >= seen - 1e-12 for deal in deals)
    return (1 + beyond) / (1 + permutations)


# -------------------------------------------------------------------------------------------------- properties of rows


def features(subject: Subject, n_sources: int) -> dict[str, np.ndarray]:
    """{name: [N] or [Q, N]}. A source is 1 where a row comes from it. Raises UsageError for a column of another length."""
    index = subject.stored
    sources = index.column("source").astype(str)
    names, counts = np.unique(sources, return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][:n_sources] if len(names) > 1 else []
    own = {name: as_numbers(name, values, len(index)) for name, values in subject.features.items()}
    return {
        "length": index.column("n_tokens").astype(np.float64),
        "overlap": word_overlap(subject),
        "loss": index.column("loss").astype(np.float64),
        "copies": copies(subject),
        **{f"source {name}": (sources == name).astype(np.float64) for name in largest},
        **own,
    }


def as_numbers(name: str, values: Any, n_rows: int) -> np.ndarray:
    """[N] numbers as they are, dates as days."""
    array = np.asarray(values)
    if array.shape != (n_rows,):
        raise UsageError(f"feature {name!r} is {array.shape}, expected a value for each of the {n_rows} rows of the index")
    if array.dtype.kind == "M":
        days = array.astype("datetime64[s]").astype(np.float64) / 86400
        return np.where(np.isnat(array), np.nan, days)
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"feature {name!r} holds {array.dtype}, expected numbers or dates ({error})") from error


def word_overlap(subject: Subject) -> np.ndarray:
    """[Q, N] the share of a row's different words that the query has too, prompt and response together; NaN for a row without words."""
    rows, queries = (
        [set(words) for words in tokenize([f"{one.prompt}\n{one.response}" for one in side])]
        for side in (subject.rows, subject.asked.queries)
    )
    return np.array([[len(row & query) / len(row) if row else np.nan for row in rows] for query in queries])


def copies(subject: Subject) -> np.ndarray:
    """[N] how many rows have the row's text."""
    _, codes_N, counts = np.unique(subject.stored.column("group").astype(str), return_inverse=True, return_counts=True)
    return counts[codes_N].astype(np.float64)


def first_of_each(subject: Subject) -> np.ndarray:
    """Positions of the first row of each text: copies would count as evidence several times."""
    return np.sort(np.unique(subject.stored.column("group").astype(str), return_index=True)[1])


def gradient_norms(subject: Subject) -> np.ndarray:
    """[N] the length of each row's stored gradient: what a score would be that no query has a part in. Cost: a scan."""
    return np.concatenate([block_ND.norm(dim=1).numpy() for _, block_ND in subject.stored.blocks("gradient")])


def plot(found: Mapping[str, Artefact]) -> Plot:
    """Each property's mean over the tenths of the ranking, in standard deviations of its own curves' spread around its mean."""
    places = [100 * (t + 0.5) / DECILES for t in range(DECILES)]
    series = [Series(name, places, relative_curve(one).tolist()) for name, one in found.items()]
    note = "From the strongest opponents to the strongest proponents; a U says that rows that matter, either way, have more of it."
    return Plot("Properties of rows by influence", "percentile of the score", "mean, over the mean of all rows", series, note=note)


def relative_curve(found: Artefact) -> np.ndarray:
    curve_T = np.nanmean(found.deciles_QT, axis=0)
    return curve_T / found.mean if found.mean else curve_T
