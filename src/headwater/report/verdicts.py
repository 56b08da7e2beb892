"""Which verdict a page shows for each query of its trace, and what it means in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from headwater.report.numerals import fixed
from headwater.report.schema import AuditRecord, Calibration, QueryVerdict, Trace
from headwater.types import Finding, FindingStatus, VerdictWord

STATUSES: tuple[VerdictWord, ...] = ("supported", "weak", "contradicted", "unknown")
MARKS: Mapping[VerdictWord, FindingStatus] = {"supported": "ok", "weak": "warn", "contradicted": "fail", "unknown": "unknown"}
MEANINGS: Mapping[VerdictWord, str] = {
    "supported": "Without these rows this output would very likely be less than half as likely as without as many random rows.",
    "weak": "Whether this output would be much less likely without these rows is not clear.",
    "contradicted": "Without these rows this output would very likely be nearly as likely as without as many random rows.",
    "unknown": "No check of an audit has measured whether these rows are behind this output.",
}
STEPS = 3


@dataclass(frozen=True)
class Told:
    """The audit as far as it is about one trace. `of_another` is the trace that was audited, where that is not this one."""

    verdicts: Mapping[str, QueryVerdict]
    of_another: str | None = None

    def of(self, query_id: str) -> QueryVerdict:
        """Unknown where the audit says nothing of this query."""
        return self.verdicts.get(query_id) or QueryVerdict(query_id=query_id)

    @property
    def any(self) -> bool:
        return bool(self.verdicts)


def told(audit: AuditRecord | None, trace_name: str | None) -> Told:
    """`trace_name` is the page's trace; where it is not known, the audit is taken to be about it."""
    if audit is None:
        return Told({})
    if audit.trace is not None and trace_name is not None and audit.trace != trace_name:
        return Told({}, of_another=audit.trace)
    return Told({verdict.query_id: verdict for verdict in audit.verdicts})


def counts(trace: Trace, said: Told) -> dict[VerdictWord, int]:
    """How many queries have each status, of those that any has."""
    found = Counter(said.of(query.id).status for query in trace.queries)
    return {status: found[status] for status in STATUSES if found[status]}


SIDES: Mapping[FindingStatus, str] = {"ok": "for", "warn": "against", "fail": "against", "unknown": "unknown"}
"""What a finding that decided a verdict says of the rows: evidence for them, or against."""


def probability(verdict: QueryVerdict) -> str:
    return "no probability" if verdict.probability is None else f"probability {fixed(verdict.probability)}"


def unknown_findings(verdicts: Iterable[QueryVerdict], findings: Iterable[Finding]) -> list[Finding]:
    """What was not measured where a query's verdict is unknown, its own findings first; nothing where none is."""
    unknown = [verdict for verdict in verdicts if verdict.status == "unknown"]
    told = [finding for verdict in unknown for finding in verdict.findings]
    return [finding for finding in (*told, *findings) if finding.status == "unknown"] if unknown else []


def next_steps(findings: Iterable[Finding]) -> list[str]:
    """The first few different steps that these findings name."""
    return list(dict.fromkeys(finding.next_step for finding in findings if finding.next_step))[:STEPS]


def calibration_sentence(calibration: Calibration | None) -> str:
    if calibration is None:
        return "No record says what this probability was calibrated on: take it as an order, not as a frequency."
    n = f"{calibration.n_queries:,} " if calibration.n_queries is not None else ""
    tasks = f" of {_listed(calibration.tasks)}" if calibration.tasks else ""
    figures = [
        f"{name} {fixed(value)}"
        for name, value in (("AUROC", calibration.auroc), ("expected calibration error", calibration.ece))
        if value is not None
    ]
    reached = f": {', '.join(figures)}" if figures else ""
    return (
        f"The probability was calibrated on {n}traced queries{tasks}, whose rows were removed and whose models were trained "
        f"again{reached}. Your data are none of these."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
