"""What an index will cost, before it is made: exact where it can be counted, timed on a few rows where it cannot."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from headwater.corpus import collate
from headwater.gradient.extra import describe_features
from headwater.gradient.rows import RowEngine
from headwater.gradient.team import Team, plan_work, row_engines
from headwater.index.build import open_corpus, open_session, settle
from headwater.index.members import plan_members
from headwater.model import measures
from headwater.model.session import Session
from headwater.recipe import IndexRecipe
from headwater.types import Example, Layout

PILOT_ROWS = 20
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Forecast:
    """Counts are exact; `seconds` scales the pilot's time by tokens; memory is what the process holds plus the largest batch and shard.

    `disk_bytes` counts the numbers, and the texts as they are: the row table stores them compressed. All figures are the main index's; each
    of the `members` is taken to cost as much again (one whose model turns out to be the main one costs nothing, an Adam member more time).
    """

    rows: int
    tokens: int
    rows_by_reason: dict[str, int]
    parameters: int
    parameters_in_scope: int
    outside: list[dict[str, Any]]
    numbers_per_row: int
    bytes_per_row: int
    disk_bytes: int
    memory_bytes: int
    pilot_rows: int
    pilot_seconds: float
    seconds: float
    padding_share: float
    members: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def disk_bytes_with_members(self) -> int:
        return self.disk_bytes * (1 + len(self.members))

    @property
    def seconds_with_members(self) -> float:
        return self.seconds * (1 + len(self.members))

    def to_json(self) -> dict[str, Any]:
        with_members = {"disk_bytes_with_members": self.disk_bytes_with_members, "seconds_with_members": self.seconds_with_members}
        return {**asdict(self), **with_members}


def plan_index(recipe: IndexRecipe, *, session: Session | None = None, data: Any = None) -> Forecast:
    """Load model and data, settle the layout, and time a pilot of 20 rows spread over the lengths. Writes nothing."""
    members = plan_members(recipe)
    session = session or open_session(recipe.model)
    corpus = open_corpus(recipe.data, session, data)
    plan = settle(recipe, session, corpus.examples)
    lengths = np.array([example.n_tokens for example in corpus.examples])
    spread = np.argsort(lengths, kind="stable")[np.linspace(0, len(lengths) - 1, min(PILOT_ROWS, len(lengths))).astype(int)]
    pilot = [corpus.examples[i] for i in spread]
    batches = plan_work(session, lengths.tolist(), recipe.engine.token_budget)
    with row_engines(session, plan.layout, lengths.tolist(), recipe.engine.token_budget) as engines:
        largest = batches[: len(engines.workers)]
        _run(engines, session, corpus.examples, largest)  # warms up, and takes as much memory as there will be taken
        seconds = _run(engines, session, pilot, plan_work(session, lengths[spread].tolist(), recipe.engine.token_budget))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    extra = describe_features(session, rept_layer=recipe.store.rept_layer)
    n_hidden = 2 * session.hidden_size + sum(int(about["width"]) for about in extra.values())
    row_bytes = _row_bytes(plan.layout, recipe.store.dtype, n_hidden)
    shard_rows = min(recipe.store.shard_rows, len(corpus))
    return Forecast(
        rows=len(corpus),
        tokens=int(lengths.sum()),
        rows_by_reason={str(reason): n for reason, n in corpus.report.counts.items()},
        parameters=sum(plan.scope.sizes.values()),
        parameters_in_scope=plan.scope.n_inside,
        outside=plan.scope.to_json()["outside"],
        numbers_per_row=plan.layout.size,
        bytes_per_row=row_bytes,
        disk_bytes=row_bytes * len(corpus) + sum(len(f"{e.prompt}{e.response}".encode()) for e in corpus.examples),
        memory_bytes=_peak_bytes() + shard_rows * plan.layout.size * (4 + BYTES[recipe.store.dtype]),
        pilot_rows=len(pilot),
        pilot_seconds=seconds,
        seconds=seconds * int(lengths.sum()) / max(1, sum(example.n_tokens for example in pilot)),
        padding_share=1 - int(lengths.sum()) / padded,
        members=[member.record.to_json() for member in members],
    )


def _run(engines: Team[RowEngine], session: Session, examples: Sequence[Example], batches: Sequence[Sequence[int]]) -> float:
    """Seconds for these batches of the examples."""

    def work(engine: RowEngine, batch: Sequence[int]) -> None:
        engine.rows(collate([examples[i] for i in batch], pad_id=session.pad_id), measures.LOSS)

    start = time.perf_counter()
    for _ in engines.each(batches, work):
        pass
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _row_bytes(layout: Layout, dtype: str, n_hidden: int) -> int:
    """`n_hidden` are the numbers of representations and further features."""
    norms = 4 * (len(layout.blocks) + 1)
    scales = 4 * len(layout.blocks) if dtype == "int8" else 0
    return layout.size * BYTES[dtype] + norms + scales + n_hidden * (4 if dtype == "float32" else 2)


def _peak_bytes() -> int:
    """What this process has held at most: the model, and the largest batches."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return host + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def size_text(n_bytes: float) -> str:
    """1536 -> '1.5 kB': powers of 1,000."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    power = min(4, int(math.log(n_bytes, 1000)))
    return f"{n_bytes / 1000**power:.1f} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def time_text(seconds: float) -> str:
    """95 -> '1 min 35 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
