"""The files of a run folder that the page shows. All but the trace may be absent; none is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headwater.report.schema import AuditRecord, Trace, parse_audit, parse_trace
from headwater.types import DataError, Finding

_FINDING = TypeAdapter(Finding)


@dataclass(frozen=True)
class Artefacts:
    """What was found in a run folder; None where a file is absent."""

    trace: Trace
    findings: tuple[Finding, ...] = ()
    corpus: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    index: Mapping[str, Any] | None = None
    audit: AuditRecord | None = None
    name: str = field(default="RUN")
    trace_name: str | None = None


def read_artefacts(run: Path, *, trace: str | None = None) -> Artefacts:
    """Everything the page needs from the run folder; `trace` names a folder of run/scores (default: the newest).

    Raises DataError where there is no trace, or where a file that is there cannot be read as what it claims to be.
    """
    path = find_trace(run, trace)
    audit = read_audit(run)
    return Artefacts(
        trace=parse_trace(_object(path), where=str(path)),
        findings=read_findings(run / "findings.jsonl") or tuple(audit.findings if audit else ()),
        corpus=_optional(run / "corpus.json"),
        run=_optional(run / "run.json"),
        index=_optional(run / "index" / "index.json"),
        audit=audit,
        name=str(run),
        trace_name=path.parent.name,
    )


def find_trace(run: Path, name: str | None = None) -> Path:
    """run/scores/<name>/trace.json; without a name, the one written last. Raises DataError where there is none."""
    found = sorted(run.glob("scores/*/trace.json"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    names = [path.parent.name for path in found]
    if name is not None and name in names:
        return found[names.index(name)]
    if name is not None:
        raise DataError(f"{run} has no trace named {name!r}; it has {sorted(names) or 'none'}. Name one of these.")
    if not found:
        raise DataError(
            f"{run} has no trace (no scores/*/trace.json). Trace an output first: `headwater trace {run} --prompt ... --response ...`."
        )
    return found[-1]


def read_audit(run: Path) -> AuditRecord | None:
    """run/audit.json, of whichever trace; None where the run was not audited."""
    path = run / "audit.json"
    return parse_audit(_object(path), where=str(path)) if path.exists() else None


def read_findings(path: Path) -> tuple[Finding, ...]:
    """One Finding per line; () where the file is absent. Raises DataError with the line's number."""
    if not path.exists():
        return ()
    lines = _text(path).splitlines()
    return tuple(parse_finding(line, where=f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def parse_finding(value: str | Mapping[str, Any] | Finding, *, where: str = "finding") -> Finding:
    """A Finding from a JSON line, a mapping, or itself."""
    if isinstance(value, Finding):
        return value
    try:
        return _FINDING.validate_json(value) if isinstance(value, str) else _FINDING.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the line"
        raise DataError(f"{where} is not a finding: {place}: {problem['msg']}. Remove the line, or audit again.") from None


def parse_findings(values: Sequence[Any]) -> tuple[Finding, ...]:
    return tuple(parse_finding(value, where=f"finding {number}") for number, value in enumerate(values, 1))


def _optional(path: Path) -> Mapping[str, Any] | None:
    return _object(path) if path.exists() else None


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}. It was cut short or edited: write it again, or take it from a copy.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected a JSON object. Is it another program's file?")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): it is damaged or not text.") from None
