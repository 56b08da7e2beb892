"""One HTML file that needs nothing else: no network, no framework, and a content security policy that keeps it so."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from headwater.report.artefacts import parse_findings, read_artefacts
from headwater.report.audited import findings_section, plots_section, verdict_section
from headwater.report.experiment import experiment_findings
from headwater.report.markup import Markup, join, json_island
from headwater.report.provenance import corpus_section, index_section, reproduce_section
from headwater.report.removal import experiment_section
from headwater.report.schema import AuditRecord, Trace, parse_audit, parse_trace
from headwater.report.sections import header_facts, how_to_read, summary_section
from headwater.report.text import legible
from headwater.report.verdicts import told
from headwater.report.view import explorer
from headwater.types import Finding, UsageError


def write_report(run: Path, *, trace: str | None = None, out: Path | None = None) -> Path:
    """Write the page of a run folder and return its path (default: run/report.html).

    `trace` names a folder of run/scores; without it the newest is shown. A file of the same name is replaced only when the
    new one is whole. Cost: one pass over trace.json. Raises DataError where an artefact cannot be read.
    """
    found = read_artefacts(run, trace=trace)
    files = {"corpus": found.corpus, "run": found.run, "index": found.index, "audit": found.audit}
    page = render(found.trace, findings=found.findings, name=found.name, trace_name=found.trace_name, **files)
    return write_page(out or run / "report.html", page)


def render(
    trace: Mapping[str, Any] | Trace,
    *,
    findings: Sequence[Finding | Mapping[str, Any]] = (),
    corpus: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    index: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | AuditRecord | None = None,
    name: str = "RUN",
    trace_name: str | None = None,
) -> str:
    """The page as a string. Raises DataError where `trace`, `audit` or a finding does not have its shape.

    `trace_name` is the folder of the trace: an audit of another one says so. Without it the audit is taken to be of this trace.
    """
    checked, audited = parse_trace(trace), None if audit is None else parse_audit(audit)
    said = told(audited, trace_name)
    css, js = asset("page.css"), asset("theme.js") + asset("page.js")
    return Template(asset("page.html")).substitute(
        csp=content_security_policy(css=css, js=js),
        title=join(f"{legible(checked.model)}: trace"),
        css=css,
        js=js,
        facts=header_facts(checked),
        before=_before_the_explorer(checked, parse_findings(findings), audited, name=name, trace_name=trace_name),
        after=join(corpus_section(corpus), index_section(index, run), reproduce_section(name)),
        data=json_island(explorer(checked, said)),
    )


def content_security_policy(*, css: str, js: str) -> str:
    """Nothing is loaded, and only this script and this style run: text that became markup by some mistake would still be inert."""
    return f"default-src 'none'; script-src '{_hash(js)}'; style-src '{_hash(css)}'; img-src data:; base-uri 'none'; form-action 'none'"


def _before_the_explorer(
    trace: Trace, findings: Sequence[Finding], audit: AuditRecord | None, *, name: str, trace_name: str | None
) -> Markup:
    said = told(audit, trace_name)
    measured = [*findings, *(experiment_findings(trace.experiment) if trace.experiment else [])]
    return join(
        verdict_section(trace, said, audit, measured, name=name, trace_name=trace_name),
        findings_section(measured, said, audit),
        plots_section(audit, said),
        experiment_section(trace.experiment) if trace.experiment else None,
        how_to_read(trace),
        summary_section(trace),
    )


def _hash(content: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def asset(name: str) -> str:
    return resources.files("headwater.report").joinpath("assets", name).read_text(encoding="utf-8")


def write_page(path: Path, content: str) -> Path:
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: {path.parent} is not a folder. Make it, or name a file in one that is there.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
