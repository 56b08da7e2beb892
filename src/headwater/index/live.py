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
from headwater.gradient.factors import each_dense
from headwater.gradient.live import LiveSource, give_back_memory
from headwater.gradient.rows import row_engine
from headwater.gradient.sketch import sides
from headwater.index.codec import encode
from headwater.index.examples import stored_examples
from headwater.index.memory import MemoryIndex
from headwater.index.read import StoredIndex
from headwater.index.scan import bfloat16_is_fast
from headwater.model.session import Session
from headwater.types import Block, Example, Factors, Index, IntegrityError, Labels, Layout, Measure, Member, MemberRole

WHOLE = "gradient_whole"
TOGETHER = 16  # rows that are multiplied with the held queries, or a multiple of them
HELD_BYTES = 256 << 20  # of the queries that are held while the rows go by


def needs_model(methods: Iterable[Any]) -> bool:
    """Whether one of these methods computes with whole gradients, which are not stored."""
    return any(WHOLE in method.requires for method in methods)


def open_live(index: StoredIndex, session: Session, methods: Iterable[Any], data: Any = None) -> LiveIndex:
    """The index with its model and the training rows, read again from the data that the run names (or `data`, of an index in memory).

    Rows are kept after the first pass where they are small enough: those that are scanned, and those whose labels are drawn.
    """
    scanned = any(getattr(method, "mode", None) == "exact" for method in methods)
    return live_index(index, session, stored_examples(index, session, data=data), keep=("true", "sampled") if scanned else ("sampled",))


def live_index(index: StoredIndex, session: Session, examples: Sequence[Example], *, keep: tuple[Labels, ...] = ("sampled",)) -> LiveIndex:
    """The index with its model and its rows, which are at hand already. `keep` names the labels whose rows are kept after a pass."""
    layout = Layout(tuple(Block(block.name, block.shape, block.shape) for block in index.layout.blocks))
    bad = np.flatnonzero(index.column("bad")).tolist()
    return LiveIndex(index, LiveSource(session, examples, layout, bad=bad, keep=keep))


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
        return Held(n_queries, self.source.layout, whole=self.source.session.dtype)

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
                values_QN[:, start : start + len(rows_BD)] = sum(held.products(name, part.flatten(1)) for name, part in parts.items())
            return values_QN
        values_QN[:, sorted(self.source.bad)] = torch.nan
        for batch in self.source.factors("true"):
            total_QB = torch.as_tensor(sum(held.products(name, whole_rows(one, held.multiplied)) for name, one in batch.factors.items()))
            values_QN[:, torch.as_tensor(batch.positions)] = total_QB[:, : len(batch.positions)].float().cpu()
            del batch  # or its factors would be held while the next batch is computed
        return values_QN


class Held:
    """Whole gradients, or solved ones, of Q queries, by block. float32 while they are small, then bfloat16, then int8 with a scale for each
    query and block.

    What is rounded is each number, at random, and a product is a sum of very many: 64 queries of 3 M numbers in int8 keep a rank
    correlation of .998.
    """

    def __init__(self, n: int, layout: Layout, *, whole: torch.dtype) -> None:
        self.layout = layout
        wide = torch.promote_types(whole, torch.float32)
        self.multiplied = (
            torch.bfloat16 if wide == torch.float32 and n * layout.size * wide.itemsize > HELD_BYTES and bfloat16_is_fast() else wide
        )
        sizes = (dtype for dtype in (wide, torch.bfloat16, torch.int8) if n * layout.size * dtype.itemsize <= HELD_BYTES)
        self.values_QD = torch.empty(n, layout.size, dtype=next(sizes, torch.int8))
        self.scale_QL = torch.ones(n, len(layout.blocks))
        self._spans = {block.name: (i, *layout.offsets[i : i + 2]) for i, block in enumerate(layout.blocks)}

    def __len__(self) -> int:
        return len(self.values_QD)

    def put(self, start: int, x_KD: Tensor) -> None:
        """Rows `start, start + 1, ...`."""
        rows = slice(start, start + len(x_KD))
        if self.values_QD.dtype != torch.int8:
            self.values_QD[rows] = x_KD
            return
        for i, a, b in self._spans.values():
            encoded = encode(x_KD[:, a:b].float(), "int8", Layout((self.layout.blocks[i],)))
            self.values_QD[rows, a:b] = encoded.values_ND
            self.scale_QL[rows, i] = encoded.scale_NK.squeeze(1) if encoded.scale_NK is not None else 1.0

    def products(self, name: str, rows_BX: Tensor) -> Tensor:
        """[Q, B] with one block of some rows. An int8 block is widened for as long as it is multiplied.

        The few rows stand on the left: a bfloat16 product whose long side is summed over is several times as fast that way round.
        """
        i, a, b = self._spans[name]
        product_QB = (rows_BX.to(self.multiplied) @ self.values_QD[:, a:b].to(self.multiplied).T).T
        return product_QB.to(torch.promote_types(product_QB.dtype, torch.float32)) * self.scale_QL[:, i : i + 1]


def whole_rows(factors: Factors, dtype: torch.dtype) -> Tensor:
    """[B, O I] the rows' own matrices, with rows of zeros up to a multiple of `TOGETHER`: few shapes of products are few to compile."""
    n, like = len(factors.g_BTO), factors.g_BTO
    rows_BX = torch.empty(n + -n % TOGETHER, like.shape[-1] * factors.a_BTI.shape[-1], dtype=dtype, device=like.device)
    rows_BX[n:] = 0
    done = 0
    for g_bOI in each_dense(factors):
        rows_BX[done : done + len(g_bOI)] = g_bOI.flatten(1)
        done += len(g_bOI)
    return rows_BX


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
        rows_KD = torch.empty(len(chosen), self.source.layout.size, dtype=session.dtype)
        with row_engine(session, self.source.layout) as engine:
            for some in plan_batches([example.n_tokens for example in chosen], token_budget=self.source.token_budget):
                batch = collate([chosen[i] for i in some], pad_id=session.pad_id)
                rows_KD[torch.tensor(some)] = engine.rows(batch, self.measure).gradient_BD.to(rows_KD)
        give_back_memory()
        return rows_KD

    def subset(self, positions: Sequence[int] | np.ndarray) -> LiveQueries:
        return LiveQueries(super().subset(positions), self.source, [self.examples[int(i)] for i in positions], self.measure)
