"""The shapes of trace.json and audit.json, checked once on reading so that nothing after it has to ask whether a field is there."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headwater.types import DataError, Finding, VerdictWord

FORMAT = 1


def _finite(value: Any) -> Any:
    """NaN and infinity become None: JSON for a browser has no word for them, and the page says "not scored"."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """Fields that a later version adds are ignored, so an older reader still shows what it knows."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class MeasureInfo(Record):
    name: str
    unit: str | None = None


class MethodInfo(Record):
    name: str
    unit: str | None = None
    summary: str = ""
    provenance: dict[str, Any] = Field(default_factory=dict)


class Token(Record):
    text: str
    target: bool = False
    log_prob: Number = None
    contribution: Number = None


class Entry(Record):
    """One training row in one ranking."""

    id: str
    score: Number
    standard_error: Number = None
    z: Number = None
    p: Number = None
    q: Number = None
    hub_rank: int | None = None
    near_duplicates: list[str] = Field(default_factory=list)


class Ranked(Record):
    proponents: list[Entry] = Field(default_factory=list)
    opponents: list[Entry] = Field(default_factory=list)


class TokenMatrix(Record):
    """A row's score taken apart: `values[t][s]` is what position s of the row adds through position t of the query."""

    id: str
    row_tokens: list[str]
    values: list[list[Number]]

    @model_validator(mode="after")
    def _fits(self) -> TokenMatrix:
        if any(len(row) != len(self.row_tokens) for row in self.values):
            raise ValueError(f"token scores of row {self.id!r} have {len(self.row_tokens)} tokens and lines of another length")
        return self


class Query(Record):
    id: str
    kind: str | None = None
    prompt: str = ""
    response: str = ""
    alternative: str | None = None
    measure_value: Number = None
    tokens: list[Token] = Field(default_factory=list)
    token_scores: list[TokenMatrix] = Field(default_factory=list)
    ranked: dict[str, Ranked]


class Row(Record):
    """One training row's text and facts; `planted` marks a row that a demo or a test put there as a known cause."""

    prompt: str = ""
    response: str = ""
    source: str = ""
    row: int = -1
    group: str = ""
    label: int | None = None
    n_tokens: int | None = None
    n_loss_tokens: int | None = None
    loss: Number = None
    copies: int = 1
    tags: list[str] = Field(default_factory=list)

    @property
    def planted(self) -> bool:
        return "planted" in self.tags


class Removal(Record):
    """What one query's measure was before, after removing the found rows, and after removing as many random ones."""

    id: str
    kind: str | None = None
    before: Number
    after_removal: Number
    after_random_removal: Number
    precision_at_10: dict[str, Number] = Field(default_factory=dict)


class Experiment(Record):
    title: str = "Removal"
    removed: int
    method: str
    queries: list[Removal]
    unit: str | None = None
    note: str = ""


class Trace(Record):
    format: Literal[1]
    created: str = ""
    headwater: str = ""
    model: str
    revision: str | None = None
    n_train: int
    n_bad: int = 0
    n_reference: int | None = None
    measure: MeasureInfo
    primary: str
    methods: list[MethodInfo] = Field(min_length=1)
    queries: list[Query]
    rows: dict[str, Row]
    experiment: Experiment | None = None

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Trace:
        names = [method.name for method in self.methods]
        if self.primary not in names:
            raise ValueError(f"primary method {self.primary!r} is not among the methods {names}")
        for query in self.queries:
            for method, ranked in query.ranked.items():
                missing = [e.id for e in (*ranked.proponents, *ranked.opponents) if e.id not in self.rows]
                if missing:
                    raise ValueError(f"query {query.id!r}, method {method!r} ranks row {missing[0]!r}, which `rows` does not hold")
        return self

    @property
    def ordered_methods(self) -> list[MethodInfo]:
        """The primary method first, the others in the order of the trace."""
        return sorted(self.methods, key=lambda method: method.name != self.primary)


class QueryVerdict(Record):
    """Whether one query's trace can be believed; `findings` are the two or three that decided it."""

    query_id: str
    status: VerdictWord = "unknown"
    probability: Number = None
    findings: list[Finding] = Field(default_factory=list)


class PlotSeries(Record):
    """A line, or a set of bars; `low` and `high` are its interval, empty or as long as it."""

    name: str = ""
    x: list[float | str]
    y: list[Number]
    low: list[Number] = Field(default_factory=list)
    high: list[Number] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits(self) -> PlotSeries:
        lengths = {len(self.x), len(self.y), *(len(bound) for bound in (self.low, self.high) if bound)}
        if len(lengths) > 1 or bool(self.low) != bool(self.high):
            raise ValueError(
                f"series {self.name!r} has x, y, low and high of lengths {[len(v) for v in (self.x, self.y, self.low, self.high)]}"
            )
        return self


class PlotRecord(Record):
    title: str
    x: str = ""
    y: str = ""
    series: list[PlotSeries] = Field(default_factory=list)
    kind: Literal["line", "bar"] = "line"
    log_x: bool = False
    note: str = ""


class Bin(Record):
    """Queries whose predicted probability lies from `low` to `high`: its mean, and the share of them whose rows proved to be the cause."""

    low: Number = None
    high: Number = None
    mean: Number = None
    observed: Number = None
    n: int = 0


class Calibration(Record):
    """What the verdict's probability was held against."""

    tasks: list[str] = Field(default_factory=list)
    n_queries: int | None = None
    auroc: Number = None
    ece: Number = None
    bins: list[Bin] = Field(default_factory=list)


class AuditRecord(Record):
    """audit.json. `trace` is the name of the audited trace; None where only the index, or a model and rows, were looked at."""

    run: str = ""
    trace: str | None = None
    headwater: str = ""
    created: str = ""
    total_s: Number = None
    findings: list[Finding] = Field(default_factory=list)
    plots: list[PlotRecord] = Field(default_factory=list)
    seconds: dict[str, Number] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    verdicts: list[QueryVerdict] = Field(default_factory=list)
    calibration: Calibration | None = None


Shape = TypeVar("Shape", Trace, AuditRecord)


def parse_trace(value: Any, *, where: str = "trace") -> Trace:
    """A checked Trace. Raises DataError that names the place, the first field that is wrong, and what was expected."""
    return _parse(Trace, value, f"{where} is not a trace of format {FORMAT}", "headwater trace RUN ...")


def parse_audit(value: Any, *, where: str = "audit") -> AuditRecord:
    """A checked AuditRecord. Raises DataError as `parse_trace` does."""
    return _parse(AuditRecord, value, f"{where} is not the record of an audit", "headwater audit RUN")


def _parse(shape: type[Shape], value: Any, problem: str, command: str) -> Shape:
    try:
        return value if isinstance(value, shape) else shape.model_validate(value)
    except ValidationError as error:
        advice = f"It was cut short, edited, or written by another version: write it again with `{command}`."
        raise DataError(f"{problem}: {_first(error)}. {advice}") from None


def _first(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    field = ".".join(str(part) for part in problems[0]["loc"]) or "the whole"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {problems[0]['msg']}{more}"
