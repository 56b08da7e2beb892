"""The checks of an audit, cheapest first, as far as the budget goes; what is left out or breaks is said, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headwater.audit.check import Check, Need, Plot, Report
from headwater.audit.subject import Subject
from headwater.corpus import collate, plan_batches
from headwater.progress import say, track
from headwater.truth.finetune import mean_loss
from headwater.types import Example, Finding

PACE_ROWS = 32  # of which a training pass is timed
GATES = ("fail",)
WORST_FIRST = ("fail", "warn", "unknown", "ok")

MISSING: dict[Need, tuple[str, str]] = {
    "index": ("there is no index", "Index the rows: `headwater index MODEL DATA --out RUN`."),
    "trace": ("nothing was traced", "Trace an output: `headwater trace RUN --prompt ... --response ...`."),
    "base": ("the model before training is not known", "Name it: --base MODEL."),
    "checkpoints": ("the run has no members at earlier checkpoints", "Index with --from-run OUTPUT, or --members checkpoint."),
    "seeds": ("the run has no members under other seeds", "Index with --members seed --sketch-seeds 1,2."),
}


@dataclass(frozen=True)
class Audit:
    """What every check said, worst first; its evidence about each query, its plots, its seconds; and which checks were left out."""

    findings: Sequence[Finding]
    evidence: dict[str, np.ndarray]
    plots: Sequence[Plot]
    seconds: dict[str, float]
    left_out: dict[str, str]

    @property
    def failed(self) -> bool:
        return any(finding.status in GATES for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "plots": [plot.to_json() for plot in self.plots],
            "seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "left_out": self.left_out,
        }


def run_checks(subject: Subject, checks: Iterable[Check], *, budget_s: float | None = None) -> Audit:
    """Run the checks in the order of their cost. One that does not fit what is left of the budget, or lacks what it needs, is `unknown`.

    A check that raises is `unknown` too, with its error: the others' findings are not lost. The budget counts seconds of this call; a
    check's cost is its `passes` times the pace of a training pass, which is timed on a few rows.
    """
    start = time.monotonic()
    pace_s = pass_seconds(subject) if budget_s is not None else 0.0
    ordered = sorted(((check, _passes(check, subject)) for check in checks), key=lambda pair: pair[1])
    reports: dict[str, Report] = {}
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for check, passes in track(ordered, total=len(ordered), description="audit"):
        spent_s, cost_s = time.monotonic() - start, passes * pace_s
        if budget_s is not None and spent_s + cost_s > budget_s:
            left_out[check.name] = f"about {cost_s:.0f} s, and {max(budget_s - spent_s, 0):.0f} s of the budget were left"
            minutes = (spent_s + cost_s) / 60
            reports[check.name] = unknown(check, f"left out: {left_out[check.name]}", f"Give it more time: --budget {minutes:.1f} minutes.")
        else:
            reports[check.name] = _run(check, subject)
        seconds[check.name] = time.monotonic() - start - spent_s
    found = [finding for report in reports.values() for finding in report.findings]
    evidence = {name: values for report in reports.values() for name, values in report.evidence.items()}
    plots = [plot for report in reports.values() for plot in report.plots]
    return Audit(worst_first(found), evidence, plots, seconds, left_out)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.status))


def missing(subject: Subject, check: Check) -> list[Need]:
    """What the check needs and the subject does not have."""
    return [need for need in MISSING if need in check.needs and not _has(subject, need)]


def _has(subject: Subject, need: Need) -> bool:
    if need in ("checkpoints", "seeds"):  # members are opened only for a check that needs them
        role, fewest = ("checkpoint", 2) if need == "checkpoints" else ("seed", 1)
        return subject.index is not None and len(subject.index.members(role)) >= fewest
    return {"index": subject.index, "trace": subject.trace, "base": subject.base}[need] is not None


def unknown(check: Check, why: str, step: str) -> Report:
    return Report([Finding(check.name, "unknown", f"Not measured: {why}.", next_step=step)])


def _run(check: Check, subject: Subject) -> Report:
    try:
        if lacking := missing(subject, check):
            return unknown(check, *MISSING[lacking[0]])
        return check(subject)
    except Exception as error:  # whatever a check meets, the others' findings are worth having
        say(f"{check.name}: {type(error).__name__}: {error}")
        return unknown(check, f"the check ended with {type(error).__name__}: {error}", "If this is not about your data, report it.")


def _passes(check: Check, subject: Subject) -> float:
    """Nothing where the check lacks what its cost depends on: it will say so itself."""
    try:
        return 0.0 if missing(subject, check) else check.passes(subject)
    except Exception:
        return 0.0


def pass_seconds(subject: Subject) -> float:
    """Seconds of a forward and backward pass over all rows, from one over a few. The weights and their gradients stay as they are."""
    some = subject.rows[:: max(1, len(subject.rows) // PACE_ROWS)][:PACE_ROWS]
    _pass(subject, some[:2])  # the first products of a process are slower
    start = time.perf_counter()
    _pass(subject, some)
    return (time.perf_counter() - start) * len(subject.rows) / max(len(some), 1)


def _pass(subject: Subject, rows: Sequence[Example]) -> None:
    session = subject.session
    parameters = [parameter for parameter in session.model.parameters() if parameter.requires_grad]
    for positions in plan_batches([row.n_tokens for row in rows], token_budget=1024):
        batch = [rows[i] for i in positions]
        if session.task == "causal-lm":
            loss = mean_loss(session.model, batch, pad_id=session.pad_id)
        else:
            loss = session.run(collate(batch, pad_id=session.pad_id)).class_logits().sum()
        torch.autograd.grad(loss, parameters, allow_unused=True)
