"""What an audit looks at: a model with its training rows, and, where there are any, an index of them and a trace of some queries.

Q queries · N training rows · K rows of a named group · R random groups
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from headwater.index.read import StoredIndex
from headwater.model.session import Session
from headwater.rank.topk import proponents
from headwater.types import Example, Measure, Scores, UsageError


@dataclass(frozen=True, eq=False)
class Asked:
    """A trace: the queries, what is explained about them, and what every method of the trace scored."""

    record: Mapping[str, Any]  # trace.json
    queries: Sequence[Example]
    measure: Measure
    scores: Mapping[str, Scores]  # by method

    @property
    def primary(self) -> str:
        return str(self.record["primary"])

    @property
    def k(self) -> int:
        """Rows of a named group: as many as the trace lists."""
        return int(self.record["recipe"]["k"])

    @property
    def method_options(self) -> Mapping[str, Any]:
        """Of the primary method."""
        return dict(self.record["recipe"]["methods"].get(self.primary) or {})


@dataclass(frozen=True, eq=False)
class Subject:
    """`index` and `trace` are None before there are any: then only the checks of model and data can run.

    `base` loads the model before it was trained, where that is known. `validation` are rows of the same kind that were not trained on.
    `training` are facts about the training that are known: epochs, lr, .... `features` are further columns of the rows by name ([N]), for
    the search for artefacts. `behaves` says whether a generated text shows the behaviour: text, query -> truth or a number.
    """

    session: Session
    rows: Sequence[Example]
    index: StoredIndex | None = None
    trace: Asked | None = None
    base: Callable[[], Session] | None = None
    validation: Sequence[Example] = ()
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    features: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    behaves: Callable[[str, Example], float] | None = None
    seed: int = 0

    # ------------------------------------------------------------------------------------------ what has to be there

    @property
    def stored(self) -> StoredIndex:
        if self.index is None:
            raise UsageError("this check needs an index of the rows")
        return self.index

    @property
    def asked(self) -> Asked:
        if self.trace is None:
            raise UsageError("this check needs a trace")
        return self.trace

    @cached_property
    def base_session(self) -> Session:
        if self.base is None:
            raise UsageError("this check needs the model before training (--base MODEL)")
        return self.base()

    # -------------------------------------------------------------------------------------------------- named groups

    @cached_property
    def scores(self) -> Scores:
        """Those of the trace's primary method."""
        return self.asked.scores[self.asked.primary]

    @cached_property
    def group_QK(self) -> list[np.ndarray]:
        """Positions of each query's named group: what the trace lists, the first k proponents by the primary method, best first."""
        return [proponents(values_N, self.asked.k) for values_N in self.scores.values_QN]

    def random_groups(self, n: int, *, but: np.ndarray | None = None) -> list[np.ndarray]:
        """n groups of as many rows as a named group has, drawn without replacement from all rows, or from those that are not `but`."""
        rng = np.random.default_rng([self.seed, 17])
        pool = np.setdiff1d(np.arange(len(self.rows)), [] if but is None else but)
        return [np.sort(rng.choice(pool, size=min(self.asked.k, len(pool)), replace=False)) for _ in range(n)]

    def examples(self, positions: Sequence[int] | np.ndarray) -> list[Example]:
        return [self.rows[int(n)] for n in positions]
