"""The shape of study.json, checked once on reading, and its cells pooled over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from headwater.evaluate.figure import Figure
from headwater.evaluate.seeds import over_seeds
from headwater.report.schema import Number, PlotRecord, Record
from headwater.types import DataError, Finding

SHARES = frozenset({"accuracy", "cover", "auroc", "average_precision", "hub_share", "attack success"})


class CellRecord(Record):
    task: str
    model: str = ""
    seed: int = 0
    part: str
    method: str
    metric: str
    variant: str = ""
    value: Number = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    over: str = ""
    unit: str | None = None
    because: str = ""


class PartPlot(PlotRecord):
    part: str = ""


class WorldRecord(Record):
    task: str
    family: str = ""
    model: str = ""
    seed: int = 0
    source: str = ""
    n_rows: int | None = None
    n_queries: int | None = None
    k: int | None = None
    classes: list[str] = Field(default_factory=list)
    seconds: dict[str, Number] = Field(default_factory=dict)
    parts: dict[str, Number] = Field(default_factory=dict)
    findings: list[Finding] = Field(default_factory=list)
    plots: list[PartPlot] = Field(default_factory=list)
    heat: str | None = None


class VoteRecord(Record):
    where: str
    holds: bool | None = None
    told: str = ""


class ClaimRecord(Record):
    name: str
    says: str = ""
    origin: str = "paper"
    verdict: Literal["reproduced", "not reproduced", "undetermined", "cannot be tested"]
    because: str = ""
    votes: list[VoteRecord] = Field(default_factory=list)
    cells: list[dict[str, Any]] = Field(default_factory=list)


class AnswerRecord(Record):
    task: str
    model: str = ""
    for_class: list[str] = Field(default_factory=list)
    for_cause: list[str] = Field(default_factory=list)
    trust: list[str] = Field(default_factory=list)
    beware: list[str] = Field(default_factory=list)


class Place(NamedTuple):
    """A task and a model: what a chapter of the page is about."""

    task: str
    model: str


class StudyRecord(Record):
    format: Literal[1]
    command: str = ""
    created: str = ""
    versions: dict[str, Any] = Field(default_factory=dict)
    seconds: Number = None
    size: dict[str, Any] = Field(default_factory=dict)
    models: list[Any] = Field(default_factory=list)
    worlds: list[WorldRecord] = Field(default_factory=list)
    cells: list[CellRecord] = Field(default_factory=list)
    claims: list[ClaimRecord] = Field(default_factory=list)
    answers: list[AnswerRecord] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_something(self) -> StudyRecord:
        if not self.worlds and not self.cells:
            raise ValueError("there is neither a world nor a cell")
        return self

    @property
    def places(self) -> list[Place]:
        named = [*((world.task, world.model) for world in self.worlds), *((cell.task, cell.model) for cell in self.cells)]
        return [Place(*one) for one in dict.fromkeys(named)]

    def worlds_of(self, place: Place) -> list[WorldRecord]:
        return [world for world in self.worlds if (world.task, world.model) == place]


@dataclass(frozen=True)
class Pooled:
    """One number of a method in a variant: the mean over the seeds that have it, and why it is not there where none has."""

    part: str
    method: str
    variant: str
    metric: str
    cells: tuple[CellRecord, ...]

    @cached_property
    def figure(self) -> Figure | None:
        """None where no seed has a value."""
        bounds = {"bounds": (0.0, 1.0)} if self.metric in SHARES else {}
        return over_seeds([figure_of(cell) for cell in self.measured], **bounds) if self.measured else None

    @property
    def measured(self) -> list[CellRecord]:
        return [cell for cell in self.cells if cell.value is not None]

    @property
    def value(self) -> float | None:
        return self.figure.value if self.figure else None

    @property
    def because(self) -> str:
        """The reasons of the empty cells, each once; "" where none is empty."""
        return "; ".join(dict.fromkeys(cell.because or "no reason given" for cell in self.cells if cell.value is None))


@dataclass(frozen=True)
class Chapter:
    """All cells of a place, pooled over seeds."""

    place: Place
    pooled: Sequence[Pooled]

    def part(self, *names: str) -> list[Pooled]:
        return [one for one in self.pooled if one.part in names]

    def find(self, part: str, metric: str) -> list[Pooled]:
        return [one for one in self.pooled if one.part == part and one.metric == metric]


def chapters(study: StudyRecord) -> list[Chapter]:
    cells: dict[Place, list[CellRecord]] = {place: [] for place in study.places}
    for cell in study.cells:
        cells[Place(cell.task, cell.model)].append(cell)
    return [Chapter(place, pool(here)) for place, here in cells.items()]


def pool(cells: Iterable[CellRecord]) -> list[Pooled]:
    """Cells that differ in the seed alone, together, in the order of their first."""
    groups: dict[tuple[str, str, str, str], list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault((cell.part, cell.method, cell.variant, cell.metric), []).append(cell)
    return [Pooled(*key, tuple(found)) for key, found in groups.items()]


def figure_of(cell: CellRecord) -> Figure:
    return Figure(float("nan") if cell.value is None else cell.value, cell.interval, cell.n or 0, cell.over)


def options(variant: str) -> dict[str, str]:
    """ "data=breaking; epoch=3" as {"data": "breaking", "epoch": "3"}; a piece without "=" is a name with the value ""."""
    pieces = [piece.partition("=") for piece in variant.split(";") if piece.strip()]
    return {name.strip(): value.strip() for name, _, value in pieces}


def without(variant: str, name: str) -> str:
    """The variant without one of its options."""
    return "; ".join(piece.strip() for piece in variant.split(";") if piece.partition("=")[0].strip() != name)


def parse_study(value: Mapping[str, Any], *, where: str = "study") -> StudyRecord:
    """A checked StudyRecord. Raises DataError that names the place, the first field that is wrong, and what was expected."""
    try:
        return StudyRecord.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise DataError(
            f"{where} is not a study of format 1: {field}: {problem['msg']}. It was cut short, edited, or written by another version: "
            "write it again with `headwater study --out DIR`."
        ) from None


def runs_of(seeds: Sequence[int]) -> str:
    """ "seeds 0 to 2", "seed 0"."""
    ordered = sorted(set(seeds))
    if len(ordered) == 1:
        return f"seed {ordered[0]}"
    runs = [[value for _, value in group] for _, group in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])]
    return "seeds " + ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
