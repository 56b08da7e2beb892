"""Whether a query's trace can be believed: the probability that removing the named rows changes the answer more than removing random ones.

Fitted to what was measured about this very query, on traced queries whose truth is known from removal and retraining (`calibration`).
Q queries · F pieces of evidence
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwater.audit.calibration import Calibration, shipped
from headwater.audit.evidence import EVIDENCE
from headwater.audit.subject import Subject
from headwater.types import CONTRADICTED, SUPPORTED, Finding, Verdict, VerdictWord

WORTH = 0.65  # AUROC on tasks it was not fitted to: evidence that does worse does not bear on the question
LARGER = 2.0  # times the share of the rows that a group of the records has: beyond it nothing is known
DECIDING = 3  # findings that a verdict names
APART = 2.0  # times the seeds' noise: below it an effect of retraining is chance (Basu et al. 2021)
HALF = math.log(2)  # nats: what leaves an answer half as likely

MORE = "Audit with more time (--budget) and the model before training (--base MODEL)."


def verdicts(subject: Subject, evidence: Mapping[str, np.ndarray], calibration: Calibration | None = None) -> tuple[Verdict, ...]:
    """One for each query. What removal and retraining measured decides alone, where it was done; else what bears on it does."""
    ids = [query.id for query in subject.asked.queries]
    by_query = [{name: float(values_Q[q]) for name, values_Q in evidence.items() if np.isfinite(values_Q[q])} for q in range(len(ids))]
    known, method = calibration or shipped(), subject.asked.primary
    share = subject.asked.k / max(len(subject.rows), 1)

    def otherwise(query_id: str, of_query: Mapping[str, float]) -> Verdict:
        if share > LARGER * known.group_share:
            return _too_large(query_id, share, known)
        return judged(query_id, of_query, known, method=method)

    return tuple(removed(one, of_query) or otherwise(one, of_query) for one, of_query in zip(ids, by_query, strict=True))


def removed(query_id: str, evidence: Mapping[str, float]) -> Verdict | None:
    """By the effect itself, where the model was trained again without the group: no verdict where it is under twice the seeds' noise.

    A cause is what leaves the answer less than half as likely; a smaller effect, however sure, leaves the behaviour as it was.
    """
    if "removal" not in evidence or "removal_error" not in evidence:
        return None
    effect, noise = evidence["removal"], evidence["removal_error"]
    told = f"trained again without these rows, the answer falls {effect:.2g} nats further than without random ones (noise {noise:.1g})"
    undetermined = max(abs(effect), HALF) < APART * noise
    caused = effect >= HALF
    status = "unknown" if undetermined else "ok" if caused else "fail"
    finding = Finding("removal", status, told, effect, "nats", (effect - APART * noise, effect + APART * noise))
    word: VerdictWord = "unknown" if undetermined else "supported" if caused else "contradicted"
    return Verdict(query_id, word, None, (finding,))


def judged(query_id: str, evidence: Mapping[str, float], calibration: Calibration, *, method: str | None = None) -> Verdict:
    """By the evidence that there is: evidence on the scale of another method's scores than the calibration's says nothing."""
    names = calibration.usable(evidence, method)
    if not names:
        return _unknown(query_id, "Nothing that bears on it was measured.")
    worth = calibration.left_out(names).auroc
    if not worth >= WORTH:
        why = f"What was measured ({', '.join(names)}) has an AUROC of {worth:.2f} only for true causes, on tasks it was not fitted to."
        return _unknown(query_id, why, value=worth)
    fit = calibration.fit(names)
    x_QF = calibration.matrix(names, {name: np.array([evidence[name]]) for name in names})
    probability, parts_F = float(fit.probability(x_QF)[0]), fit.contributions(x_QF)[0]
    told = word(probability)
    findings = tuple(_finding(names[f], evidence[names[f]], parts_F[f]) for f in _deciding(told, parts_F))
    return Verdict(query_id, told, probability, findings)


def _deciding(told: VerdictWord, parts_F: np.ndarray) -> list[int]:
    """The evidence that says most for the word; of a weak one that says most either way."""
    side_F = parts_F if told == "supported" else -parts_F if told == "contradicted" else np.abs(parts_F)
    return [f for f in np.argsort(-side_F).tolist()[:DECIDING] if side_F[f] > 0]


def _unknown(query_id: str, why: str, *, value: float | None = None, step: str | None = None) -> Verdict:
    return Verdict(query_id, "unknown", None, (Finding("verdict", "unknown", why, value=value, next_step=step or MORE),))


def _too_large(query_id: str, share: float, calibration: Calibration) -> Verdict:
    why = f"A named group is {share:.0%} of all rows; the probability is known for groups of {calibration.group_share:.0%}."
    return _unknown(query_id, why, value=share, step="Trace with a smaller k, or measure it: `headwater audit RUN --only removal`.")


def word(probability: float) -> VerdictWord:
    return "supported" if probability >= SUPPORTED else "contradicted" if probability <= CONTRADICTED else "weak"


def _finding(name: str, value: float, part: float) -> Finding:
    """`part` is in log odds: above 0 it speaks for the rows."""
    return Finding(f"verdict: {name}", "ok" if part > 0 else "warn", EVIDENCE[name].words(value), value=value)


def calibrated_on(calibration: Calibration, names: Sequence[str]) -> dict[str, Any] | None:
    """What a page says of the probabilities: the records they were fitted to, and how such fits did on tasks that they had not seen."""
    if not names:
        return None
    found = calibration.left_out(names)
    return {
        "tasks": list(calibration.tasks),
        "n_queries": len(calibration.caused_M),
        "evidence": list(names),
        "auroc": found.auroc,
        "ece": found.expected_calibration_error,
        "bins": found.bins(),
    }
