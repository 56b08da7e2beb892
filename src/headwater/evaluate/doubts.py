"""What makes a score matrix, or how it was matched, doubtful. Each is a `Finding`. Q queries · N training rows

What no test here can see: an order that is wrong in another way than by a shift or reversal, a shift within rows that are sorted by
class, and a leak that varies within classes. The coherence test says more of the first.
"""

from __future__ import annotations

import numpy as np

from headwater.evaluate.alignment import Order, row_order
from headwater.evaluate.classes import ClassLabels
from headwater.evaluate.figure import Figure
from headwater.evaluate.lds import mean_outcomes
from headwater.evaluate.ranking import Ranking
from headwater.types import Finding, Scores, Truth

SAME = 1e-9  # of a query's spread: what is less is rounding
MOST_ROWS = 5_000  # that the coherence of columns is tested on


def ties(ranking: Ranking, k: int) -> Finding:
    """Whether the first row, or who is among the first k, is decided by the order of the rows alone."""
    sorted_QN = ranking.sorted_QN[ranking.usable_Q]
    n_rows = sorted_QN.shape[1]
    tied_Q = np.zeros(len(sorted_QN), dtype=bool)
    for place in {1, k}:
        if place < n_rows:
            tied_Q |= sorted_QN[:, place - 1] == sorted_QN[:, place]
    n_tied, n = int(tied_Q.sum()), len(tied_Q)
    if not n_tied:
        return Finding("ties", "ok", f"No query's first row, nor who is among its first {k}, is decided by a tie.", value=0.0, n=n)
    because = f"In {n_tied} of {n} queries the first row or the first {k} are decided by a tie, where the order of the rows decides."
    return Finding(
        "ties", "warn", because, value=n_tied / n, n=n, next_step="AUROC and average precision count ties as such; look at these."
    )


def missing(ranking: Ranking) -> Finding:
    """NaN: pairs without a score. They never rank and add nothing to a predicted outcome."""
    missing_QN = ~ranking.known_QN
    share, n_lost = float(missing_QN.mean()), int(missing_QN.all(1).sum())
    n = len(missing_QN)
    if not share:
        return Finding("missing scores", "ok", "Every pair has a score.", value=0.0, n=n)
    lost = f" {n_lost} of {n} queries have none at all and are left out of every figure." if n_lost else ""
    because = (
        f"{share:.2%} of the pairs are NaN, in {int(missing_QN.any(0).sum())} training rows: never ranked, and counted as missed.{lost}"
    )
    return Finding("missing scores", "fail" if n_lost else "warn", because, value=share, n=n, next_step="See why these rows have no score.")


def constant(ranking: Ranking) -> Finding:
    """Queries that give every row the same score: they rank nothing."""
    flat_Q = ~ranking.usable_Q & ranking.known_QN.any(1)
    n_flat, n = int(flat_Q.sum()), len(flat_Q)
    if not n_flat:
        return Finding("constant scores", "ok", "No query gives every row the same score.", value=0.0, n=n)
    because = f"{n_flat} of {n} queries give every row the same score; they rank nothing and are left out of every figure."
    return Finding("constant scores", "fail", because, value=n_flat / n, n=n, next_step="See whether these queries have a gradient at all.")


def sign(figure: Figure, *, chance: float, of: str) -> Finding:
    """Whether the other sign would do better than chance: the whole interval lies below it."""
    if figure.interval is None:
        return Finding("sign", "unknown", f"{of} has no interval here.", n=figure.n)
    facts = {"value": figure.value, "interval": figure.interval, "n": figure.n}
    low, high = figure.interval
    if high < chance:
        because = f"{of} is surely below chance ({chance:g}): the sign is the wrong way round, or the scores point away from the answer."
        return Finding("sign", "warn", because, **facts, next_step="Check what a high number means in this file, and --sign.")
    status = "ok" if low > chance else "unknown"
    words = "surely above" if status == "ok" else "not surely above or below"
    return Finding("sign", status, f"{of} is {words} chance ({chance:g}).", **facts)


def order_by_labels(ranking: Ranking, labels: ClassLabels) -> Finding:
    """Whether another order of the training rows fits the labels far better than the one that is given."""
    usable_Q = ranking.usable_Q
    ranks_QN = np.where(ranking.known_QN, ranking.ranks_QN, np.nan)[usable_Q]
    ranks_QN = np.where(np.isnan(ranks_QN), np.nanmean(ranks_QN, axis=1, keepdims=True), ranks_QN) if usable_Q.any() else ranks_QN
    classes = np.intersect1d(labels.train_N, labels.query_Q)
    weight_QC = (labels.query_Q[usable_Q][:, None] == classes[None]).astype(float)
    member_CN = (classes[:, None] == labels.train_N[None]).astype(float)
    return _order(row_order(ranks_QN, weight_QC, member_CN / member_CN.sum(1, keepdims=True)), "labels", int(usable_Q.sum()))


def order_by_bank(scores: Scores, truth: Truth, places_D: np.ndarray) -> Finding:
    """The same against the retrained outcomes: which rows were kept where a query did well."""
    outcome_DQ = mean_outcomes(truth)[places_D]
    known_DQ = np.isfinite(outcome_DQ)
    n_Q = np.maximum(known_DQ.sum(0), 1)
    centred_DQ = np.where(known_DQ, outcome_DQ - np.where(known_DQ, outcome_DQ, 0).sum(0) / n_Q, 0.0)
    spread_Q = np.sqrt((centred_DQ**2).sum(0) / n_Q)
    weight_QD = (centred_DQ / np.where(spread_Q > 0, spread_Q, 1.0)).T
    values_QN = np.where(np.isnan(scores.values_QN), 0.0, scores.values_QN)
    return _order(row_order(values_QN, weight_QD, truth.kept_DN[places_D].astype(float)), "bank", len(values_QN))


def _order(order: Order, what: str, n: int) -> Finding:
    if order.wrong:
        because = (
            f"As the rows stand they fit the {what} no better than chance (z {order.given:.1f}); "
            f"{order.best_order} they fit far better (z {order.best:.1f})."
        )
        return Finding(
            "row order", "fail", because, value=order.given, n=n, next_step=f"See in which order the columns and the {what} are."
        )
    tested = "Every shift of the training rows and the reverse were tried"
    if order.given < 2:
        return Finding("row order", "unknown", f"{tested}: no order fits the {what} better than chance.", value=order.given, n=n)
    return Finding("row order", "ok", f"{tested}: the order given fits the {what} (z {order.given:.1f}).", value=order.given, n=n)


def coherence(scores: Scores, labels: ClassLabels, auroc: Figure, *, permutations: int = 100, seed: int = 0) -> Finding:
    """Whether labels that are shuffled on one side explain an AUROC of chance: rows of a class that are alike on one side only.

    On each side: do rows of the matrix with the same label resemble each other (`sum_c || sum_(i in c) z_i ||^2 / n_c`, against
    permuted labels)? Where the queries' classes show and the training rows' do not, or the reverse, that side's labels are in another
    order than the scores, or the scores know nothing of that side. Where AUROC is surely above chance, labels of both sides fit and
    nothing is left to ask.
    """
    if auroc.interval is not None and auroc.interval[0] > 0.5:
        return Finding("label order", "ok", "AUROC by label is above chance: the labels of both sides fit.", n=len(labels.query_Q))
    values_QN = np.where(np.isnan(scores.values_QN), 0.0, scores.values_QN)
    columns = np.random.default_rng(seed).permutation(values_QN.shape[1])[:MOST_ROWS]
    sides = {"queries": (values_QN, labels.query_Q), "training rows": (values_QN[:, columns].T, labels.train_N[columns])}
    z = {what: _alike(rows, names, permutations, seed) for what, (rows, names) in sides.items()}
    numbers = ", ".join(f"{what} z {value:.1f}" for what, value in z.items())
    shows = [what for what, value in z.items() if value > 6]
    hidden = [what for what, value in z.items() if value < 2]
    if shows and hidden:
        because = f"Scores of {shows[0]} of one class are alike, those of {hidden[0]} are not ({numbers})."
        step = f"See whether the labels of the {hidden[0]} are in the order of the scores."
        return Finding("label order", "warn", because, value=z[hidden[0]], n=len(labels.query_Q), next_step=step)
    return Finding("label order", "ok" if len(shows) == 2 else "unknown", f"Likeness within classes: {numbers}.", n=len(labels.query_Q))


def _alike(rows_RD: np.ndarray, labels_R: np.ndarray, permutations: int, seed: int) -> float:
    """z against permuted labels; NaN where there are not two classes with two rows of one."""
    _, codes_R, counts_C = np.unique(labels_R, return_inverse=True, return_counts=True)
    if len(counts_C) < 2 or counts_C.max() < 2:
        return float("nan")
    spread_D = rows_RD.std(0)  # a hub column is common to all, and large: it says nothing of classes
    rows_RD = (rows_RD - rows_RD.mean(0)) / np.where(spread_D > 0, spread_D, 1.0)
    norms_R = np.sqrt((rows_RD**2).sum(1, keepdims=True))
    rows_RD = rows_RD / np.where(norms_R > 0, norms_R, 1.0)
    member_RC = np.eye(len(counts_C))[codes_R]
    rng = np.random.default_rng(seed)

    def within(member_RC: np.ndarray) -> float:
        return float((((member_RC.T @ rows_RD) ** 2).sum(1) / counts_C).sum())

    random_P = np.array([within(member_RC[rng.permutation(len(member_RC))]) for _ in range(permutations)])
    return (within(member_RC) - float(random_P.mean())) / (float(random_P.std()) or 1.0)


def label_leak(ranking: Ranking, labels: ClassLabels) -> Finding:
    """Whether scores take one value for each class: a function of the label and of nothing else about the row."""
    values_QN, (classes, codes_N) = ranking.values_QN[ranking.usable_Q], np.unique(labels.train_N, return_inverse=True)
    n = len(values_QN)
    if not n or len(classes) < 2 or len(classes) == len(labels.train_N):
        return Finding("label leak", "unknown", "Not to be seen: no query that ranks, or no two classes with several rows.", n=n)
    spread_Q = np.nanmax(values_QN, axis=1) - np.nanmin(values_QN, axis=1)
    by_class = np.argsort(codes_N, kind="stable")
    starts_C = np.searchsorted(codes_N[by_class], np.arange(len(classes)))
    sorted_QN = values_QN[:, by_class]
    high_QC = np.maximum.reduceat(np.where(np.isnan(sorted_QN), -np.inf, sorted_QN), starts_C, axis=1)
    low_QC = np.minimum.reduceat(np.where(np.isnan(sorted_QN), np.inf, sorted_QN), starts_C, axis=1)
    within_Q = (high_QC - low_QC).max(1)  # -inf for a class without any score
    share = float((within_Q <= SAME * spread_Q).mean())
    if not share:
        return Finding("label leak", "ok", "Scores differ within classes.", value=0.0, n=n)
    because = f"In {share:.0%} of {n} queries every row of a class has the same score: it is a function of the label."
    step = "Look for the label among what the scores were computed from; judge by retraining."
    return Finding("label leak", "fail", because, value=share, n=n, next_step=step)


def unknown_classes(labels: ClassLabels) -> Finding:
    """Queries whose class no training row has."""
    unknown_Q = ~np.isin(labels.query_Q, labels.train_N)
    n_unknown, n = int(unknown_Q.sum()), len(unknown_Q)
    if not n_unknown:
        return Finding("classes", "ok", "Every query's class is among the training rows.", value=0.0, n=n)
    because = (
        f"The class of {n_unknown} of {n} queries (such as {labels.query_Q[unknown_Q][0]!r}) is no training row's: counted as missed by "
        "accuracy and cover, undefined elsewhere."
    )
    return Finding("classes", "warn", because, value=n_unknown / n, n=n, next_step="See whether both files name classes alike.")


def matching(scores: Scores, truth: Truth, bank: Truth) -> Finding:
    """On how many of the bank's queries the scores are, and whether rows were matched by id or by order alone."""
    n, n_all = len(bank.query_ids), max(len(scores.query_ids), len(truth.query_ids))
    by_id = scores.train_ids[:2] != ("0", "1") and truth.train_ids[:2] != ("0", "1")
    how = "by id" if by_id else "by order, for want of ids in common"
    because = f"Rows are matched {how}; the scores have {len(scores.query_ids)} queries, the bank {len(truth.query_ids)}, both {n}."
    doubtful = not by_id or n < n_all
    return Finding("matching", "warn" if doubtful else "ok", because, value=n / n_all, n=n)


def diverged(truth: Truth) -> Finding:
    """Outcomes that are not there: not measured, or of a training that diverged. They are left out, never averaged in."""
    missing = ~np.isfinite(truth.outcomes_DSQ)
    n_diverged = 0 if truth.diverged_DS is None else int(truth.diverged_DS.sum())
    share = float(missing.mean())
    if not share:
        return Finding("missing outcomes", "ok", "Every outcome of the bank was measured.", value=0.0, n=missing.size)
    because = f"{share:.2%} of the bank's outcomes are missing ({n_diverged} trainings diverged): they are left out, not averaged in."
    return Finding(
        "missing outcomes", "warn", because, value=share, n=missing.size, next_step="Resume the bank, or see why trainings diverge."
    )
