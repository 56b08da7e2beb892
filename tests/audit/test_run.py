"""The runner: cheapest first within a budget, and what is left out, lacks something or breaks is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from headwater.audit import registry
from headwater.audit.check import Need, Report
from headwater.audit.run import pass_seconds, run_checks
from headwater.audit.subject import Subject
from headwater.types import Finding, UsageError


@dataclass(frozen=True)
class Fake:
    summary: ClassVar[str] = "nothing"
    reference: ClassVar[str] = ""

    name: str
    cost: float = 0.0
    needs: frozenset[Need] = frozenset()
    status: Any = "ok"
    ran: list[str] = field(default_factory=list)
    error: Callable[[], None] | None = None

    def passes(self, subject: Subject) -> float:
        return self.cost

    def __call__(self, subject: Subject) -> Report:
        self.ran.append(self.name)
        if self.error:
            self.error()
        return Report([Finding(self.name, self.status, "as it is")])


def test_the_cheapest_comes_first_and_the_worst_is_told_first(subject: Subject):
    ran: list[str] = []
    found = run_checks(
        subject, [Fake("dear", 2.0, ran=ran), Fake("cheap", 1.0, status="fail", ran=ran), Fake("free", status="warn", ran=ran)]
    )
    assert ran == ["free", "cheap", "dear"]
    assert [finding.name for finding in found.findings] == ["cheap", "free", "dear"]
    assert found.failed
    assert not run_checks(subject, [Fake("free", status="warn")]).failed


def test_what_does_not_fit_the_budget_is_unknown_and_says_what_it_would_take(subject: Subject):
    ran: list[str] = []
    found = run_checks(subject, [Fake("dear", 1e6, ran=ran), Fake("cheap", ran=ran)], budget_s=5)
    assert ran == ["cheap"]
    (dear,) = [finding for finding in found.findings if finding.name == "dear"]
    assert dear.status == "unknown"
    assert "left out" in dear.because
    assert "--budget" in (dear.next_step or "")
    assert "dear" in found.left_out


def test_a_check_that_breaks_costs_no_other_finding(subject: Subject):
    def broken() -> None:
        raise ZeroDivisionError("in the check")

    found = run_checks(subject, [Fake("broken", error=broken), Fake("other", 1.0)])
    by_name = {finding.name: finding for finding in found.findings}
    assert by_name["broken"].status == "unknown"
    assert "ZeroDivisionError: in the check" in by_name["broken"].because
    assert by_name["other"].status == "ok"


@pytest.mark.parametrize("need", ["index", "trace", "base", "checkpoints", "seeds"])
def test_what_lacks_something_is_unknown_with_the_way_to_get_it(need: Need, subject: Subject):
    bare = Subject(session=subject.session, rows=subject.rows)
    (finding,) = run_checks(bare, [Fake("needy", needs=frozenset({need}))]).findings
    assert finding.status == "unknown"
    assert finding.next_step


def test_a_pass_is_timed_and_leaves_no_gradient(subject: Subject):
    assert 0 < pass_seconds(subject) < 60
    assert all(parameter.grad is None for parameter in subject.session.model.parameters())


def test_names_of_checks():
    assert {"numerics", "coverage", "hubs", "solver", "controls", "patch", "removal"} <= set(registry.names())
    with pytest.raises(UsageError, match="did you mean hubs"):
        registry.get("hub")
    with pytest.raises(UsageError, match="hubs"):
        registry.get("hubs", colour=3)
