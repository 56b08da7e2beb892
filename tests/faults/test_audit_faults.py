"""Every silent fault that the audit is there for turns the right finding to `fail`, and no other one by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.audit import registry
from headwater.audit.run import Audit, run_checks
from headwater.audit.subject import Subject
from headwater.auditing import chosen
from tests.audit_faults import FAULTS, kinds_world

COSTLY = {"gaps", "removal"}  # they train again
SMALL = {
    "solver": {"curvatures": (), "queries": 4},
    "displacement": {"draws": 5, "fractions": ()},
    "patch": {"steps": 6, "neighbours": 1},
}
pytestmark = pytest.mark.slow


def audited(subject: Subject) -> Audit:
    """By every check but those that train."""
    return run_checks(subject, chosen([name for name in registry.names() if name not in COSTLY], SMALL))


def failed(audit: Audit) -> dict[str, str]:
    return {finding.name: finding.because for finding in audit.findings if finding.status == "fail"}


def test_a_healthy_world_fails_nothing(tmp_path: Path) -> None:
    audit = audited(kinds_world(tmp_path).subject())
    assert failed(audit) == {}
    broken = [finding.because for finding in audit.findings if "the check ended with" in finding.because]
    assert broken == []


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_turns_its_finding_and_no_other(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    found = failed(audited(fault.plant(tmp_path, monkeypatch)))
    assert fault.word in found[fault.finding]
    assert set(found) <= {fault.finding} | fault.follows, found
