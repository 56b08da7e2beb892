"""What a part is, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headwater.audit.check import Plot
from headwater.study.cells import Cell, Place
from headwater.study.world import World
from headwater.types import Finding


@dataclass(frozen=True)
class Outcome:
    """Cells, and what a page shows beside them: findings (what is doubtful about the task) and plots."""

    cells: Sequence[Cell]
    findings: Sequence[Finding] = ()
    plots: Sequence[Plot] = ()
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "findings": [finding.to_json() for finding in self.findings],
            "plots": [plot.to_json() for plot in self.plots],
            "seconds": round(self.seconds, 2),
            "facts": dict(self.facts),
        }


class Part(Protocol):
    """`name`, `summary`, `metrics` and `reference` are class attributes; the object is its frozen options."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for `headwater study --list`."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """Those of the cells that it leaves."""
        ...

    def unfit(self, world: World) -> str:
        """Why this part has nothing to measure in this world ("" where it has): it becomes the reason of an empty cell."""
        ...

    def __call__(self, world: World) -> Outcome: ...


def place(part: Part, world: World) -> Place:
    return Place(world.task.name, world.model.name, world.seed, part.name)
