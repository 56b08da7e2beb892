"""All that can be said of a score matrix from the tables at hand: figures, intervals, and what is doubtful. Q queries · N training rows"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.evaluate import doubts, retrieval
from headwater.evaluate.agreement import FEWEST
from headwater.evaluate.classes import ClassLabels, accuracy_Q, cover_Q, places
from headwater.evaluate.figure import Figure, mean_figure, proportion_figure
from headwater.evaluate.hubs import hub_corrected, hub_share, occurrence_skewness
from headwater.evaluate.lds import Agreement, agreements, families, matched, paired_difference, tables
from headwater.evaluate.mislabel import found_at, mislabel_auc
from headwater.evaluate.overlap import check_same, overlap_Q
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.removal import Point, removal_curve, separation
from headwater.types import DataError, Finding, Scores, Truth, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

HUB_PLACES = 10  # first rows that hubs are counted over, where there are no classes to say how many
YES_OR_NO = ("accuracy", "recall_any")  # a query has it or not: Wilson's interval
CHECKED = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Options:
    """`k` first rows are looked at (the paper's c where None); `hub_correct` takes z over the queries first; `seed` is the bootstraps'."""

    k: int | None = None
    hub_correct: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Figures by name; the same without hub correction; less the other scores' (paired); the removal curve; and what is doubtful."""

    facts: Mapping[str, Any]
    figures: Mapping[str, Figure]
    findings: tuple[Finding, ...]
    uncorrected: Mapping[str, Figure] = field(default_factory=dict[str, Figure])
    differences: Mapping[str, Figure] = field(default_factory=dict[str, Figure])
    removal: tuple[Point, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One object: facts, each figure as NAME and NAME_interval, the unit that was resampled for each, and the findings."""
        return {
            **self.facts,
            **_flat(self.figures),
            "intervals_over": {name: figure.over for name, figure in self.figures.items() if figure.interval is not None},
            **({"uncorrected": _flat(self.uncorrected)} if self.uncorrected else {}),
            **({"differences": _flat(self.differences)} if self.differences else {}),
            **({"removal": [point.to_json() for point in self.removal]} if self.removal else {}),
            "findings": [finding.to_json() for finding in self.findings],
        }

    def to_pandas(self) -> pd.DataFrame:
        """A line for each figure: name, value, low, high, n, over; `of` is "scores", "uncorrected" or "difference"."""
        import pandas as pd

        parts = {"scores": self.figures, "uncorrected": self.uncorrected, "difference": self.differences}
        return pd.DataFrame(
            [
                {"of": of, "name": name, "value": figure.value, "low": low, "high": high, "n": figure.n, "over": figure.over}
                for of, figures in parts.items()
                for name, figure in figures.items()
                for low, high in [figure.interval or (np.nan, np.nan)]
            ]
        )

    def show(self, console: Console) -> None:
        """A table of the figures and the findings that are not ok."""
        from rich.table import Table
        from rich.text import Text

        console.print(Text(", ".join(f"{name} {value}" for name, value in self.facts.items() if value is not None), style="dim"))
        beside = {"uncorrected": self.uncorrected, "difference": self.differences}
        shown = {"value": self.figures, **{title: figures for title, figures in beside.items() if figures}}
        table = Table("", *shown, box=None, pad_edge=False, header_style="dim")
        for name in dict.fromkeys([*self.figures, *self.differences]):
            table.add_row(name, *(str(figures[name]) if name in figures else "" for figures in shown.values()))
        console.print(table)
        console.print(Text(f"95 % intervals over {self._sampled()}", style="dim"))
        for point in self.removal:
            console.print(Text(f"without {point.k} rows, {point.pick}: {point.change} (over {point.change.n} seeds)"))
        for finding in self.findings:
            if finding.status != "ok":
                console.print(Text(f"{finding.status:8} {finding.name}: {finding.because} {finding.next_step or ''}"))

    def _repr_html_(self) -> str:
        return self.to_pandas().to_html(index=False, float_format="{:.3g}".format)

    def _sampled(self) -> str:
        """Which figures' intervals are over what, each unit once."""
        units: dict[str, list[str]] = {}
        for name, figure in {**self.figures, **self.differences}.items():
            units.setdefault(figure.over, []).append(name)
        return units.popitem()[0] if len(units) == 1 else "; ".join(f"{over}: {', '.join(names)}" for over, names in units.items())

    def __str__(self) -> str:
        return "\n".join(f"{name:24} {figure}" for name, figure in self.figures.items())


def _flat(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: value for key, figure in figures.items() for name, value in figure.to_json(key).items()}


def evaluate(
    scores: Scores,
    *,
    labels: ClassLabels | None = None,
    truth: Truth | None = None,
    wrong_N: np.ndarray | None = None,
    against: Scores | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Hold scores against labels, a bank of retrainings, marks of wrong rows, or other scores: whatever is given, at least one.

    Scores have Headwater's sign (`read_scores` sees to it). `wrong_N` marks mislabelled rows, and a row's suspicion is its mean score
    over the queries (a self-influence has one). Raises UsageError or DataError where the tables do not fit together. Cost: sorts, and Q
    D^2 for a bank.
    """
    options = options or Options()
    if labels is None and truth is None and wrong_N is None and against is None:
        raise UsageError("nothing to hold the scores against: give labels of both sides, a bank, marks of wrong rows, or other scores")
    _check_sizes(scores, labels, wrong_N)
    if against is not None:
        check_same(scores, against)
    k = places(labels, options.k) if labels is not None else _hub_places(scores, options.k)
    ours = _figures(scores, labels, truth, wrong_N, k, options)
    theirs = None if against is None else _figures(against, labels, truth, wrong_N, k, options)
    curve = removal_curve(*matched(ours.scores, truth)) if truth is not None else []
    if truth is not None and not ours.agreements and not curve:
        raise DataError(
            f"the bank has {len(truth.kept_DN)} designs: no {FEWEST} of one kind that leave rows out, over which to correlate, and no "
            "removal of the rows that these scores put first. Retrain on more subsets"
        )
    return Evaluation(
        facts=_facts(scores, against, truth, ours, k, options),
        figures=ours.figures,
        findings=(*ours.findings, *separation(curve)),
        uncorrected=_figures(scores, labels, truth, wrong_N, k, replace(options, hub_correct=False)).figures if options.hub_correct else {},
        differences={} if theirs is None else _differences(ours, theirs, truth, k, options.seed),
        removal=tuple(curve),
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """What one score matrix came to."""

    scores: Scores
    ranking: Ranking
    figures: dict[str, Figure]
    findings: list[Finding]
    per_query: dict[str, np.ndarray]
    agreements: dict[str, Agreement]


def _figures(
    scores: Scores, labels: ClassLabels | None, truth: Truth | None, wrong_N: np.ndarray | None, k: int, options: Options
) -> _Side:
    if options.hub_correct:
        scores = hub_corrected(scores)
    ranking = Ranking(scores.values_QN)
    per_query = {} if labels is None else class_values(ranking, labels, k)
    figures = {name: _figure(name, values_Q, options.seed) for name, values_Q in per_query.items()}
    figures |= {"hub_share": hub_share(ranking)[0], "occurrence_skewness": occurrence_skewness(ranking, k)}
    findings = [doubts.missing(ranking), doubts.constant(ranking), doubts.ties(ranking, k)]
    if labels is not None:
        findings += _label_findings(scores, ranking, labels, figures["auroc"])
    found: dict[str, Agreement] = {}
    if truth is not None:
        found = agreements(*matched(scores, truth), seed=options.seed)
        figures |= {name: figure for one in found.values() for name, figure in one.figures().items()}
        findings += _bank_findings(scores, truth, found)
    if wrong_N is not None:
        figures |= mislabel_figures(scores, wrong_N)
    return _Side(scores, ranking, figures, findings, per_query, found)


def class_values(ranking: Ranking, labels: ClassLabels, k: int) -> dict[str, np.ndarray]:
    """[Q] each query's value of every figure that labels allow; NaN where it is undefined."""
    same_QN = labels.same_QN
    return {
        "accuracy": accuracy_Q(ranking, labels),
        "cover": cover_Q(ranking, labels, k),
        "auroc": retrieval.auroc_Q(ranking, same_QN),
        "average_precision": retrieval.average_precision_Q(ranking, same_QN),
        "recall_share": retrieval.recall_Q(ranking, same_QN, k),
        "recall_any": retrieval.hit_Q(ranking, same_QN, k),
        "reciprocal_rank": retrieval.reciprocal_rank_Q(ranking, same_QN),
    }


def mislabel_figures(scores: Scores, wrong_N: np.ndarray) -> dict[str, Figure]:
    """AUC and what checking 5, 10 and 20 % of the rows would find, by the mean score of a row over the queries."""
    known_QN = ~np.isnan(scores.values_QN)
    n_N = known_QN.sum(0)
    suspicion_N = np.where(n_N > 0, np.where(known_QN, scores.values_QN, 0).sum(0) / np.maximum(n_N, 1), np.nan)
    found = {f"mislabel_found_at_{share * 100:g}": found_at(suspicion_N, wrong_N, share) for share in CHECKED}
    return {"mislabel_auc": mislabel_auc(suspicion_N, wrong_N), **found}


def _figure(name: str, values_Q: np.ndarray, seed: int) -> Figure:
    if name in YES_OR_NO:
        return proportion_figure(int(np.nansum(values_Q)), int(np.isfinite(values_Q).sum()))
    return mean_figure(values_Q, seed=seed)


def _label_findings(scores: Scores, ranking: Ranking, labels: ClassLabels, auroc: Figure) -> list[Finding]:
    return [
        doubts.unknown_classes(labels),
        doubts.sign(auroc, chance=0.5, of="AUROC by label"),
        doubts.order_by_labels(ranking, labels),
        doubts.coherence(scores, labels, auroc),
        doubts.label_leak(ranking, labels),
    ]


def _bank_findings(scores: Scores, truth: Truth, found: Mapping[str, Agreement]) -> list[Finding]:
    """Sign and order on the family with the most designs."""
    ours, bank = matched(scores, truth)
    always = [doubts.matching(scores, truth, bank), doubts.diverged(truth)]
    if not found:
        return always
    name, largest = max(found.items(), key=lambda item: item[1].n_designs)
    return [
        *always,
        doubts.sign(largest.spearman, chance=0.0, of=f"{name.replace('_', ' ')} (Spearman) against the bank"),
        doubts.order_by_bank(ours, bank, families(bank)[name]),
    ]


def _differences(ours: _Side, theirs: _Side, truth: Truth | None, k: int, seed: int) -> dict[str, Figure]:
    """Ours less theirs, query by query (and design by design); and how many of the first k rows both name."""
    found = {name: mean_figure(values_Q - theirs.per_query[name], seed=seed) for name, values_Q in ours.per_query.items()}
    found["top_k_overlap"] = mean_figure(overlap_Q(ours.ranking, theirs.ranking, k), seed=seed)
    if truth is not None:
        (one, bank), (other, _) = matched(ours.scores, truth), matched(theirs.scores, truth)
        for name, places_D in families(bank).items():
            pairs = tables(one, bank, places_D), tables(other, bank, places_D)
            found |= {f"{name}_{kind}": paired_difference(pairs[0][kind], pairs[1][kind], seed=seed) for kind in pairs[0]}
    return {name.replace("lds_spearman", "lds"): figure for name, figure in found.items()}


def _facts(scores: Scores, against: Scores | None, truth: Truth | None, ours: _Side, k: int, options: Options) -> dict[str, Any]:
    row = hub_share(ours.ranking)[1]
    facts: dict[str, Any] = {
        "scores": scores.provenance.get("file"),
        "method": scores.method,
        "sign": scores.provenance.get("sign", "positive"),
        "n_queries": len(scores.query_ids),
        "n_train": len(scores.train_ids),
        "k": k,
        "hub_correct": options.hub_correct,
        "hub_row": scores.train_ids[row] if row >= 0 else None,
    }
    if against is not None:
        facts["against"] = against.provenance.get("file", against.method)
    if truth is not None:
        facts |= {"truth": truth.kind, "n_seeds": len(truth.seeds)}
        for name, one in ours.agreements.items():
            facts |= {f"{name}_designs": one.n_designs, f"{name}_subset_fraction": round(one.kept_share, 6)}
        facts["ceiling_by"] = "split-half over seeds, Spearman-Brown, square root" if len(truth.seeds) > 1 else None
    return facts


def _hub_places(scores: Scores, k: int | None) -> int:
    n_train = len(scores.train_ids)
    k = min(HUB_PLACES, n_train) if k is None else k
    if not 1 <= k <= n_train:
        raise UsageError(f"k is {k}, expected 1 to {n_train}, the number of training rows")
    return k


def _check_sizes(scores: Scores, labels: ClassLabels | None, wrong_N: np.ndarray | None) -> None:
    n_queries, n_train = scores.values_QN.shape
    if labels is not None:
        given = len(labels.query_Q), len(labels.train_N)
        if given != (n_queries, n_train):
            turned = (
                " The matrix seems to be turned round: rows must be queries, columns training rows."
                if given == (n_train, n_queries)
                else ""
            )
            raise DataError(f"labels of {given[0]} queries and {given[1]} training rows, but scores of {n_queries} and {n_train}.{turned}")
        if not np.isin(labels.query_Q, labels.train_N).any():
            raise DataError(
                f"no query's class is a training row's: queries have {labels.query_Q[0]!r}, ..., training rows {labels.train_N[0]!r}, ... "
                "Likely another column in one of the files"
            )
    if wrong_N is not None and len(wrong_N) != n_train:
        raise DataError(f"marks of {len(wrong_N)} training rows, but scores of {n_train}")
