"""An index with its model at hand: beside the stored rows, whole gradients, computed when they are asked for.

Letters: Q queries · N rows · B rows of a batch · K vectors · D numbers of a whole gradient · O, I the two sides of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.corpus import collate, plan_batches
from headwater.gradient.factor_file import StoredBatch, together
from headwater.gradient.live import LiveSource, give_back_memory
from headwater.gradient.rows import row_engine
from headwater.gradient.sketch import sides
from headwater.gradient.team import Team
from headwater.index.examples import stored_examples
from headwater.index.held import Held
from headwater.index.memory import MemoryIndex
from headwater.index.read import StoredIndex
from headwater.model.session import Session
from headwater.progress import track
from headwater.types import Block, Example, Index, IntegrityError, Labels, Layout, Measure, Member, MemberRole

WHOLE = "gradient_whole"
ROWS_TOGETHER = 32  # that meet what is held, where their factors are in a file


def needs_model(methods: Iterable[Any]) -> bool:
    """Whether one of these methods computes with whole gradients, which are not stored."""
    return any(WHOLE in method.requires for method in methods)


def open_live(index: StoredIndex, session: Session, methods: Iterable[Any], data: Any = None) -> LiveIndex:
    """The index with its model and the training rows, read again from the data that the run names (or `data`, of an index in memory).

    What the first pass over the rows computes is kept, in memory or in a file beside the index: of the true labels where rows are scanned,
    and of those that the methods' curvatures are measured with.
    """
    methods = list(methods)
    labels: set[Labels] = {getattr(getattr(method, "curvature", None), "labels", "sampled") for method in methods}
    if any(getattr(method, "mode", None) == "exact" for method in methods):
        labels.add("true")
    return live_index(index, session, stored_examples(index, session, data=data), keep=tuple(sorted(labels, reverse=True)))


def live_index(index: StoredIndex, session: Session, examples: Sequence[Example], *, keep: tuple[Labels, ...] = ("sampled",)) -> LiveIndex:
    """The index with its model and its rows, which are at hand already. `keep` names the labels whose rows are wanted after a pass."""
    layout = Layout(tuple(Block(block.name, block.shape, block.shape) for block in index.layout.blocks))
    bad = np.flatnonzero(index.column("bad")).tolist()
    return LiveIndex(index, LiveSource(session, examples, layout, bad=bad, keep=keep, folder=index.run))


class LiveIndex:
    """`types.Index` over stored rows, with the feature "gradient_whole" and what `methods.shared.Live` asks for.

    `source` has the examples of the stored rows, in their order. Raises IntegrityError where it does not.
    """

    def __init__(self, stored: Index, source: LiveSource) -> None:
        ids = tuple(example.id for example in source.examples)
        if ids != tuple(stored.ids):
            raise IntegrityError(
                f"the index has {len(stored):,} rows, the training data gives {len(ids):,}, or others, or in another order: the data "
                "changed since it was indexed. Give the data of the index, or index again."
            )
        self.stored, self.source = stored, source

    @property
    def layout(self) -> Layout:
        return self.stored.layout

    @property
    def gradient_of(self) -> str:
        return self.stored.gradient_of

    @property
    def ids(self) -> Sequence[str]:
        return self.stored.ids

    @property
    def features(self) -> frozenset[str]:
        return self.stored.features | {WHOLE}

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        return self.source.blocks("gradient") if feature == WHOLE else self.stored.blocks(feature)

    def take(self, feature: str, positions: Sequence[int] | np.ndarray) -> Tensor:
        return self.source.take(positions) if feature == WHOLE else self.stored.take(feature, positions)

    def products(self, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
        """As `types.Index`. "gradient_whole" costs a pass over the rows (none where the source keeps them) and Q D multiplications a row.

        A row whose gradient is not finite is NaN.
        """
        if feature != WHOLE:
            return self.stored.products(feature, queries_QD, scale_N=scale_N)
        held = self.hold(len(queries_QD))
        held.put(0, queries_QD)
        values_QN = self.held_products(held)
        return values_QN if scale_N is None else values_QN * scale_N

    def hold(self, n_queries: int) -> Held:
        """Room for so many whole gradients, in the widest dtype that keeps them small: they stay in memory while the rows go by."""
        return Held(n_queries, self.source.layout, whole=self.source.session.dtype, device=self.source.session.device)

    def column(self, name: str) -> np.ndarray:
        return self.stored.column(name)

    def members(self, role: MemberRole) -> tuple[Member, ...]:
        return self.stored.members(role)

    def __len__(self) -> int:
        return len(self.stored)

    def sketch(self, whole_KD: Tensor) -> Tensor:
        """`L X R'` of each block: a solved query as the stored rows are. Cost K k_O O I multiplications a block."""
        parts = self.source.layout.split(whole_KD)
        for block in self.layout.blocks:
            for i, side in enumerate(sides(block, self.layout.sketch_seed, dtype=whole_KD.dtype, device=whole_KD.device)):
                parts[block.name] = side.project(parts[block.name].movedim(i + 1, -1)).movedim(-1, i + 1)
        return self.layout.join(parts)

    def held_products(self, held: Held) -> Tensor:
        """[Q, N] of the held queries with every row's whole gradient."""
        values_QN = torch.zeros(len(held), len(self))
        if self.source.keeps("true"):
            for start, rows_BD in self.source.blocks("gradient"):
                parts = self.source.layout.split(rows_BD)
                values_QN[:, start : start + len(rows_BD)] = torch.as_tensor(
                    sum(held.products(name, part.flatten(1)) for name, part in parts.items())
                ).cpu()
            return values_QN
        values_QN[:, sorted(self.source.bad)] = torch.nan
        if stored := self.source.in_file("true"):
            self._products_in_file(held, stored, values_QN)
            return values_QN
        # whole batches, no workers: each batch reads all that is held, and the smaller ones of workers would read it oftener
        for batch in self.source.factors("true"):
            total_QB = torch.as_tensor(sum(held.factor_products(name, [one]) for name, one in batch.factors.items()))
            values_QN[:, torch.as_tensor(batch.positions)] = total_QB.float().cpu()
            del batch  # or its factors would be held while the next batch is computed
        return values_QN

    def _products_in_file(self, held: Held, stored: Sequence[StoredBatch], values_QN: Tensor) -> None:
        """Block by block, of many rows at once: what is held is read the less often."""
        names = [block.name for block in self.source.layout.blocks]

        def work(worker: int, batches: Sequence[StoredBatch]) -> None:
            used = [[batch for batch in batches if name in batch.places] for name in names]
            for name, some in zip(names, used, strict=True):
                if some:
                    at = torch.as_tensor([i for batch in some for i in batch.positions])
                    values_QN[:, at] += held.factor_products(name, [batch.block(name) for batch in some]).float().cpu()

        give_back_memory()  # what the solves have left
        groups = together(stored, ROWS_TOGETHER)
        team = Team(range(min(torch.get_num_threads(), len(groups))))
        for _ in track(team.each(groups, work), total=len(groups), description=f"products with {len(self):,} rows"):
            give_back_memory()


class LiveQueries(MemoryIndex):
    """Queries whose whole gradients are computed when they are taken: a few at a time, since each is as long as the model."""

    def __init__(self, queries: MemoryIndex, source: LiveSource, examples: Sequence[Example], measure: Measure) -> None:
        super().__init__(queries.ids, queries.layout, queries.gradient_of, queries._features, queries._columns, queries._members)
        self.source, self.examples, self.measure = source, examples, measure

    @property
    def features(self) -> frozenset[str]:
        return super().features | {WHOLE}

    def take(self, feature: str, positions: Sequence[int] | np.ndarray) -> Tensor:
        if feature != WHOLE:
            return super().take(feature, positions)
        chosen, session = [self.examples[int(i)] for i in positions], self.source.session
        plan = plan_batches([example.n_tokens for example in chosen], token_budget=self.source.token_budget)
        with row_engine(session, self.source.layout) as engine:

            def rows(some: Sequence[int]) -> Tensor:
                batch = collate([chosen[i] for i in some], pad_id=session.pad_id)
                return engine.rows(batch, self.measure).gradient_BD.to("cpu", session.dtype)

            if len(plan) == 1:  # all of them, in their order: nothing to copy
                rows_KD = rows(range(len(chosen)))
            else:
                rows_KD = torch.empty(len(chosen), self.source.layout.size, dtype=session.dtype)
                for some in plan:
                    rows_KD[torch.tensor(some)] = rows(some)
        give_back_memory()
        return rows_KD

    def subset(self, positions: Sequence[int] | np.ndarray) -> LiveQueries:
        return LiveQueries(super().subset(positions), self.source, [self.examples[int(i)] for i in positions], self.measure)
