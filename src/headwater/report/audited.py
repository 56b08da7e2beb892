"""What an audit says, on the page: the verdict of each query, what was measured, and plots. Readable with scripts off, and in print."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence

from headwater.report.icons import status
from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import fixed, number, with_unit
from headwater.report.parts import cut, prose, section
from headwater.report.plots import calibration_figure, figure
from headwater.report.schema import AuditRecord, Query, QueryVerdict, Trace
from headwater.report.verdicts import (
    MARKS,
    MEANINGS,
    SIDES,
    Told,
    calibration_sentence,
    counts,
    next_steps,
    probability,
    unknown_findings,
)
from headwater.types import CONTRADICTED, SUPPORTED, Finding, FindingStatus

WORST_FIRST: tuple[FindingStatus, ...] = ("fail", "warn", "unknown", "ok")
SHOWN_QUERIES = 8


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.status))


# --------------------------------------------------------------------------------------------------------- verdicts


def verdict_section(
    trace: Trace, said: Told, audit: AuditRecord | None, findings: Sequence[Finding], *, name: str, trace_name: str | None
) -> Markup:
    """The banner: a verdict for each query, what it rests on, and what to run where it is unknown."""
    command = f"headwater audit {shlex.quote(name)}" + (f" --trace {shlex.quote(trace_name)}" if said.of_another and trace_name else "")
    return section(
        "verdict",
        "Can this be believed?",
        _count_line(trace, said) if said.any else None,
        el("p", _standing(trace, said, findings), class_="verdict-note"),
        _cards(trace, said) if said.any else None,
        _to_do(trace, said, findings, command),
        el("p", foreign(calibration_sentence(audit.calibration)), class_="quiet") if audit and _probable(said) else None,
    )


def _count_line(trace: Trace, said: Told) -> Markup:
    found = counts(trace, said)
    parts = [status(MARKS[word], word=f"{n:,} {word}") for word, n in found.items()]
    n = len(trace.queries)
    return el(
        "p", el("strong", f"{n:,} {'query' if n == 1 else 'queries'}: "), *(join(part, " ") for part in parts), class_="verdict-counts"
    )


def _standing(trace: Trace, said: Told, findings: Sequence[Finding]) -> Markup:
    if said.any:
        return join(
            f"A verdict is the probability that, trained again without the rows that {trace.primary} lists for a query, the model would "
            "give its output less than half the probability that it has without as many random rows."
        )
    unknown = join(status("unknown", word="verdict unknown"), " ")
    if said.of_another:
        return join(
            unknown,
            "The audit in this folder is of another trace, ",
            el("code", said.of_another),
            "; the trace on this page was not audited.",
        )
    if findings:
        return join(unknown, "The findings below are what was measured about this trace; no verdict was made of it.")
    return join(unknown, "Nothing was audited for this run. A ranking is evidence, not proof.")


def _cards(trace: Trace, said: Told) -> Markup:
    cards = [_card(position, query, said.of(query.id)) for position, query in enumerate(trace.queries)]
    rest = cards[SHOWN_QUERIES:]
    more = el("details", el("summary", f"{len(rest):,} more queries"), el("ul", *rest, class_="verdicts")) if rest else None
    return join(el("ul", *cards[:SHOWN_QUERIES], class_="verdicts"), more)


def _card(position: int, query: Query, verdict: QueryVerdict) -> Markup:
    mark = MARKS[verdict.status]
    chance = None if verdict.status == "unknown" and verdict.probability is None else probability(verdict)
    return el(
        "li",
        el(
            "div",
            status(mark, word=verdict.status),
            el("span", chance, class_="probability") if chance else None,
            meter(verdict),
            class_="verdict-word",
        ),
        el(
            "div",
            el("h3", el("a", foreign(query.id), href=f"#query-{position}")),
            el("p", cut(query.prompt, 110), " ", el("strong", cut(query.response, 70)), class_="verdict-query"),
            class_="verdict-about",
        ),
        el("div", _reasons(verdict), class_="verdict-why"),
        class_=f"verdict-card finding-{mark}",
    )


def _reasons(verdict: QueryVerdict) -> Markup:
    if not verdict.findings:
        return el("p", MEANINGS[verdict.status])
    return el(
        "ul", *(el("li", status(one.status, word=SIDES[one.status]), " ", prose(one.because)) for one in verdict.findings), class_="reasons"
    )


def meter(verdict: QueryVerdict) -> Markup | None:
    """The probability on a line from 0 to 1, with the two places where its word changes."""
    if verdict.probability is None:
        return None
    at = [f"{2 + 96 * min(max(value, 0.0), 1.0):.2f}%" for value in (CONTRADICTED, SUPPORTED, verdict.probability)]
    return el(
        "svg",
        el("line", x1="2%", x2="98%", y1="7", y2="7", class_="axis"),
        *(el("line", x1=x, x2=x, y1="3", y2="11", class_="axis") for x in at[:2]),
        el("circle", cx=at[2], cy="7", r="4.5", class_="dot"),
        role="img",
        aria_label=f"probability {fixed(verdict.probability)} between 0 and 1",
        width="100%",
        height="14",
        class_="meter",
    )


def _to_do(trace: Trace, said: Told, findings: Sequence[Finding], command: str) -> Markup | None:
    """What would make the unknown known."""
    if said.any and "unknown" not in counts(trace, said):
        return None
    steps = next_steps(unknown_findings(map(said.of, (query.id for query in trace.queries)), findings)) if said.any else []
    shown = [prose(step) for step in steps] or [join("Audit it: ", el("code", command))]
    return el("div", el("p", el("strong", "To find out:")), el("ul", *(el("li", step) for step in shown)), class_="to-do")


def _probable(said: Told) -> bool:
    return any(verdict.probability is not None for verdict in said.verdicts.values())


# -------------------------------------------------------------------------------------------------------- findings


def findings_section(findings: Sequence[Finding], said: Told, audit: AuditRecord | None) -> Markup | None:
    """Each check with its findings, the worst first."""
    if not findings:
        return None
    notice = None
    if said.of_another:
        about = (
            "These are findings about another trace, ",
            el("code", said.of_another),
            ". What they say of the index holds for this one too.",
        )
        notice = el("p", *about, class_="notice")
    return section(
        "findings",
        "What was measured",
        notice,
        checks(findings, audit.seconds if audit else {}),
        el("p", _when(audit), class_="quiet") if audit and audit.created else None,
        note=_tally(findings),
    )


def checks(findings: Sequence[Finding], seconds: Mapping[str, float | None]) -> Markup:
    return el("div", *(_check(name, group, seconds.get(name)) for name, group in grouped(findings).items()), class_="checks")


def grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """{check: its findings}, the check with the worst one first; `numerics: padding` is the check `numerics`'s."""
    groups: dict[str, list[Finding]] = {}
    for finding in worst_first(findings):
        groups.setdefault(finding.name.partition(": ")[0], []).append(finding)
    return groups


def _tally(findings: Sequence[Finding]) -> str:
    words: Mapping[FindingStatus, str] = {"fail": "failed", "warn": "to be read with care", "unknown": "not measured", "ok": "in order"}
    found = [f"{n:,} {words[word]}" for word in WORST_FIRST if (n := sum(one.status == word for one in findings))]
    return f"{len(findings):,} finding{'s' if len(findings) > 1 else ''}, worst first: {', '.join(found)}."


def _when(audit: AuditRecord) -> str:
    took = "" if audit.total_s is None else f", in {number(audit.total_s)} s"
    by = f", by Headwater {audit.headwater}" if audit.headwater else ""
    return f"Audited {audit.created.replace('T', ' ').replace('+00:00', ' UTC')}{took}{by}."


def _check(name: str, findings: Sequence[Finding], seconds: float | None) -> Markup:
    worst = findings[0].status
    took = el("span", f"{number(seconds, digits=2)} s", class_="quiet") if seconds else None
    return el(
        "div",
        el("div", el("h3", foreign(name)), status(worst), took, class_="check-head"),
        el("ul", *(_finding(finding, name, alone=len(findings) == 1) for finding in findings), class_="findings"),
        class_=f"check finding-{worst}",
    )


def _finding(finding: Finding, check: str, *, alone: bool) -> Markup:
    detail = finding.name.removeprefix(check).removeprefix(": ")
    head = join(el("h4", foreign(detail)) if detail else None, None if alone else status(finding.status))
    return el(
        "li",
        el("div", head, class_="finding-head") if head else None,
        el("p", prose(finding.because)),
        _value(finding),
        el("p", el("strong", "Next: "), prose(finding.next_step), class_="next") if finding.next_step else None,
        class_=f"finding finding-{finding.status}",
    )


def _value(finding: Finding) -> Markup | None:
    value = value_text(finding)
    return el("p", value, class_="value") if value else None


def value_text(finding: Finding) -> str:
    """ "value 0.21 · interval 0.15 to 0.28 · n = 128": what of it there is."""
    value = finding.value if finding.value is not None and math.isfinite(finding.value) else None
    parts = [f"value {with_unit(value, finding.unit)}"] if value is not None else []
    if finding.interval and all(map(math.isfinite, finding.interval)):
        parts.append(f"interval {number(finding.interval[0])} to {number(finding.interval[1])}")
    elif value is not None:
        parts.append("no interval")
    parts += [f"n = {finding.n:,}"] if finding.n is not None else []
    return " · ".join(parts)


# ----------------------------------------------------------------------------------------------------------- plots


def plots_section(audit: AuditRecord | None, said: Told) -> Markup | None:
    if audit is None or not (audit.plots or audit.calibration):
        return None
    figures = [figure(plot, id=f"plot-{k}") for k, plot in enumerate(audit.plots)]
    calibration = calibration_figure(audit.calibration, id="plot-calibration") if audit.calibration else None
    note = f"These are of another trace, {said.of_another}." if said.of_another else None
    shown = [*figures, *([calibration] if calibration else [])]
    return section("plots", "What was measured, drawn", el("div", *shown, class_="plots"), note=note) if shown else None
