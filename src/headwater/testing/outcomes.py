"""Running a list of checks, and what the checks of methods and of curvatures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headwater.types import UsageError

RELATIVE = 1e-4  # float32 sums of a few hundred terms, in any order

Check = Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """How one check ended. `known` is a failure that was declared, with its reason in `message`."""

    id: str
    status: Literal["passed", "failed", "known"]
    message: str = ""


def run_checks(name: str, checks: Sequence[tuple[str, Check]], known: Mapping[str, str]) -> list[Outcome]:
    """Every check's outcome. AssertionError that lists those that failed, UsageError where `known` names an id that no check has."""
    unknown = sorted(known.keys() - dict(checks).keys())
    if unknown:
        raise UsageError(f"known_failures names {unknown}, expected ids among {[id for id, _ in checks]}")
    outcomes = [_run(id, check, known.get(id)) for id, check in checks]
    failed = [f"{outcome.id}: {outcome.message}" for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise AssertionError(f"{name} failed {len(failed)} of {len(checks)} checks\n" + "\n".join(failed))
    return outcomes


def _run(id: str, check: Check, reason: str | None) -> Outcome:
    """Whatever a check raises is a failed check, not the end of the suite."""
    try:
        check()
    except Exception as error:
        return Outcome(id, "failed", f"{type(error).__name__}: {error}") if reason is None else Outcome(id, "known", reason)
    return Outcome(id, "passed") if reason is None else Outcome(id, "failed", f"declared as a known failure ({reason}), but it passes")


def expect(holds: Any, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def ratio(found: np.ndarray, expected: np.ndarray) -> str:
    defined = np.isfinite(found) & np.isfinite(expected) & (expected != 0)
    ratios = found[defined] / expected[defined]
    return f"{np.median(ratios):.4g} (from {ratios.min():.4g} to {ratios.max():.4g})" if ratios.size else "undefined"


def refuses(action: Callable[[], object], error: type[Exception], what: str) -> None:
    try:
        action()
    except error:
        return
    raise AssertionError(f"{what}: accepted, expected {error.__name__}")
