"""Cells looked up and pooled: what claims and answers are read from. A setting is a task and a model, its seeds together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from headwater.evaluate.figure import Figure
from headwater.evaluate.seeds import ANYTHING, difference, over_seeds
from headwater.report.study_schema import SHARES
from headwater.study.cells import Cell

ORACLE = "same class"
"""The method that knows the class alone: `World.by_class`."""


class Setting(NamedTuple):
    task: str
    model: str

    def __str__(self) -> str:
        return f"{self.task} ({self.model})"


class Way(NamedTuple):
    """A method in one of its variants."""

    method: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.method} [{self.variant}]" if self.variant else self.method


@dataclass(frozen=True)
class Known:
    """A figure over seeds, and the cells that say so."""

    figure: Figure
    cells: tuple[Cell, ...]

    @property
    def value(self) -> float:
        return self.figure.value

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.figure.interval

    def __str__(self) -> str:
        return said(self.figure)


@dataclass(frozen=True)
class Reading:
    """Cells by where they belong. What is null stays out of every figure, and can be asked for its reason."""

    cells: Sequence[Cell]

    @cached_property
    def _at(self) -> Mapping[tuple[Setting, str, str, str], Mapping[str, list[Cell]]]:
        """(setting, part, method, metric) -> {variant: cells, one a seed}."""
        found: dict[Any, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in self.cells:
            found[(setting_of(cell), cell.part, cell.method, cell.metric)][cell.variant].append(cell)
        return found

    @cached_property
    def settings(self) -> list[Setting]:
        return list(dict.fromkeys(map(setting_of, self.cells)))

    def ways(self, setting: Setting, part: str, metric: str) -> list[Way]:
        """The ways that have a value of this metric here, in the order of the cells."""
        there = ((key[2], variant) for key, variants in self._at.items() if key[0] == setting and key[1] == part and key[3] == metric
                 for variant, cells in variants.items() if any(cell.value is not None for cell in cells))  # fmt: skip
        return [Way(*way) for way in there]

    def metrics(self, setting: Setting, part: str) -> list[str]:
        return list(dict.fromkeys(key[3] for key in self._at if key[0] == setting and key[1] == part))

    def values(self, setting: Setting, part: str, method: str, metric: str, variant: str | None = None) -> list[Cell]:
        """The cells with a value, one a seed: of this variant, else of the one named "", else of the first."""
        variants = self._at.get((setting, part, method, metric), {})
        there = {name: known for name, cells in variants.items() if (known := [cell for cell in cells if cell.value is not None])}
        if variant is not None:
            return there.get(variant, [])
        return there.get("") or next(iter(there.values()), [])

    def known(self, setting: Setting, part: str, method: str, metric: str, variant: str | None = None) -> Known | None:
        """None where no seed has a value."""
        cells = self.values(setting, part, method, metric, variant)
        return Known(over_seeds(list(map(figure_of, cells)), bounds=bounds(metric)), tuple(cells)) if cells else None

    def less(self, setting: Setting, part: str, one: Way | str, other: Way | str, metric: str) -> Known | None:
        """`one - other`, over the seeds that have both: where a part left the paired difference ("METRIC less OTHER", a metric of `one`),
        that; else the two taken as independent, which is wide."""
        ours, theirs = _way(one), _way(other)
        paired = self.known(setting, part, ours[0], f"{metric} less {theirs[0]}", ours[1])
        if paired is not None:
            return paired
        left = {cell.seed: cell for cell in self.values(setting, part, *_asked(ours, metric))}
        right = {cell.seed: cell for cell in self.values(setting, part, *_asked(theirs, metric))}
        seeds = [seed for seed in left if seed in right]
        if not seeds:
            return None
        figures = [difference(figure_of(left[seed]), figure_of(right[seed])) for seed in seeds]
        return Known(over_seeds(figures), tuple(cells[seed] for seed in seeds for cells in (left, right)))

    def find(self, setting: Setting, part: str, fits: Callable[[str], bool]) -> list[tuple[Way, str]]:
        """(way, metric) of a part whose metric's name fits and that have a value."""
        return [(way, metric) for metric in self.metrics(setting, part) if fits(metric) for way in self.ways(setting, part, metric)]

    def reasons(self, part: str, methods: Iterable[str], metric: str) -> list[str]:
        """Why cells of this metric are empty, each reason once."""
        wanted = set(methods)
        empty = (c for c in self.cells if c.part == part and c.method in wanted and c.metric == metric and c.value is None and c.because)
        return list(dict.fromkeys(f"{cell.task}, {cell.method}: {cell.because}" for cell in empty))


def setting_of(cell: Cell) -> Setting:
    return Setting(cell.task, cell.model)


def figure_of(cell: Cell) -> Figure:
    return Figure(float("nan") if cell.value is None else cell.value, cell.interval, cell.n or 0, cell.over)


def bounds(metric: str) -> tuple[float, float]:
    return (0.0, 1.0) if metric in SHARES else ANYTHING


def said(figure: Figure) -> str:
    """ ".84 (.71 to .92)": two decimals for what is about 1 in size, three digits else."""
    interval = f" ({_digits(figure.interval[0])} to {_digits(figure.interval[1])})" if figure.interval else ""
    return f"{_digits(figure.value)}{interval}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 10 or value == 0 else f"{value:.3g}"


def listed(names: Sequence[object]) -> str:
    written = [str(name) for name in names]
    return ", ".join(written[:-1]) + f" and {written[-1]}" if len(written) > 1 else "".join(written)


def _way(way: Way | str) -> tuple[str, str | None]:
    return (way, None) if isinstance(way, str) else (way.method, way.variant)


def _asked(way: tuple[str, str | None], metric: str) -> tuple[str, str, str | None]:
    return way[0], metric, way[1]
