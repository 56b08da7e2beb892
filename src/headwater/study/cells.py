"""A cell: one number of the study, with its interval, or the reason why it is not there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.evaluate.figure import Figure

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """`metric` of `method` in `variant` on `task`. `value` is None where it could not be measured: `because` says why.

    Shares are fractions, not percent. `n` counts the sampling units of the interval (`over`: queries, seeds, ...).
    """

    task: str
    model: str
    seed: int
    part: str
    method: str
    metric: str
    variant: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    over: str = ""
    unit: str | None = None
    because: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Cell:
        interval = found.get("interval")
        return Cell(**{**found, "interval": None if interval is None else (float(interval[0]), float(interval[1]))})


@dataclass(frozen=True)
class Place:
    """Where cells belong: what all cells of a part in a world share."""

    task: str
    model: str
    seed: int
    part: str

    def cell(self, method: str, metric: str, found: Figure | float | None, *, variant: str = "", **facts: Any) -> Cell:
        """A cell of this place. NaN is no number: it becomes None, and `because` should be among the facts."""
        if isinstance(found, Figure):
            known = found.interval is not None and all(map(math.isfinite, found.interval))
            facts = {"interval": found.interval if known else None, "n": found.n, "over": found.over, **facts}
            found = found.value
        value = None if found is None or not math.isfinite(found) else float(found)
        if value is None and not facts.get("because"):
            facts["because"] = "undefined here"
        return Cell(self.task, self.model, self.seed, self.part, method, metric, variant, value, **facts)

    def missing(self, method: str, metric: str, because: str, *, variant: str = "") -> Cell:
        return Cell(self.task, self.model, self.seed, self.part, method, metric, variant, because=because)


def to_frame(cells: Iterable[Cell]) -> pd.DataFrame:
    """One line a cell; the interval as `low` and `high`."""
    import pandas as pd

    lines = []
    for cell in cells:
        low, high = cell.interval or (None, None)
        lines.append({name: value for name, value in asdict(cell).items() if name != "interval"} | {"low": low, "high": high})
    names = ["task", "model", "seed", "part", "method", "variant", "metric", "value", "low", "high", "n", "over", "unit", "because"]
    return pd.DataFrame(lines, columns=names).astype({"value": "float64", "low": "float64", "high": "float64", "n": "Int64"})


def write_parquet(cells: Iterable[Cell], path: Path) -> None:
    from headwater.atomic import write_atomically

    frame = to_frame(cells)
    write_atomically(path, lambda file: frame.to_parquet(file, index=False))
