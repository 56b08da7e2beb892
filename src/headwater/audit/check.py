"""What a check is, and what it leaves: findings, numbers that bear on each query's verdict, and plots.

Adding a check is adding one file with a frozen dataclass, and its line in `headwater.audit.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from headwater.audit.subject import Subject
from headwater.types import Finding

Need = Literal["index", "trace", "base", "checkpoints", "seeds"]
"""What a subject must have: an index; a trace; the model before training; members at several checkpoints; under several sketch seeds."""


@dataclass(frozen=True)
class Series:
    """One line, or one set of bars, of a plot; `low` and `high` are its interval."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Plot:
    """What a page draws: "line" over numbers, or "bar" over names. `note` is a sentence below it."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: Literal["line", "bar"] = "line"
    log_x: bool = False
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """What a check found. `evidence` are numbers of each query ([Q], NaN where not measured) by the names of `headwater.audit.evidence`."""

    findings: Sequence[Finding]
    evidence: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    plots: Sequence[Plot] = ()


@runtime_checkable
class Check(Protocol):
    """`name`, `summary`, `reference`, `needs` are class attributes; the object is its frozen options."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for `headwater audit --list`."""
        ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def passes(self, subject: Subject) -> float:
        """What it costs, in training passes over the rows: the order of an audit, and what is left out of a budget."""
        ...

    def __call__(self, subject: Subject) -> Report: ...
