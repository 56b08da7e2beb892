"""An index in memory: queries, and whatever is small enough. It answers as the stored one does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.index import codec, scan
from headwater.index.codec import Stored
from headwater.types import DataError, Layout, LayoutMismatch, Member, MemberRole

BLOCK_ROWS = 1024  # rows that go through a product together: large enough to be fast, small enough for a cache


class MemoryIndex:
    """Features and columns of rows, given whole. `features["gradient"]` is [N, D] in `layout`; every feature has N rows.

    Raises LayoutMismatch where the gradient's width is not the layout's, DataError where lengths differ or ids repeat.
    """

    def __init__(
        self,
        ids: Sequence[str],
        layout: Layout,
        gradient_of: str,
        features: Mapping[str, Tensor],
        columns: Mapping[str, Sequence[object] | np.ndarray] | None = None,
        members: Sequence[Member] = (),
    ) -> None:
        self.layout, self.gradient_of, self._ids = layout, gradient_of, tuple(ids)
        self._features = {name: tensor.detach().float().contiguous() for name, tensor in features.items()}
        self._columns = {name: _as_array(column) for name, column in (columns or {}).items()}
        self._members, self._norms = tuple(members), dict[str, Tensor]()
        self._check()

    def _check(self) -> None:
        if len(set(self._ids)) != len(self._ids):
            raise DataError(f"{len(self._ids) - len(set(self._ids))} ids are given twice: each row needs its own")
        lengths = {name: len(part) for name, part in {**self._features, **self._columns}.items()}
        if wrong := {name: n for name, n in lengths.items() if n != len(self)}:
            raise DataError(f"{len(self)} ids, but {wrong} rows in these features or columns: give one for each id")
        if "gradient" in self._features and self._features["gradient"].shape[1:] != (self.layout.size,):
            found = tuple(self._features["gradient"].shape)
            raise LayoutMismatch(f"the gradient is {found}, expected ({len(self)}, {self.layout.size}) by the layout")

    @property
    def ids(self) -> tuple[str, ...]:
        return self._ids

    @property
    def features(self) -> frozenset[str]:
        return frozenset(self._features)

    def __len__(self) -> int:
        return len(self._ids)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        for start, stored in self.stored_blocks(feature):
            yield start, stored.values_ND

    def take(self, feature: str, positions: Sequence[int] | np.ndarray) -> Tensor:
        return self.stored_rows(feature, positions).values_ND

    def products(self, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
        """[Q, N] float32; NaN for a bad row. See `headwater.index.scan.products`."""
        return scan.products(self, feature, queries_QD, scale_N=scale_N)

    def column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise DataError(f"there is no column {name!r} here; there are {sorted(self._columns)}")
        return self._columns[name]

    def members(self, role: MemberRole) -> tuple[Member, ...]:
        return tuple(member for member in self._members if member.role == role)

    def positions_of(self, ids: Sequence[str]) -> np.ndarray:
        """[len(ids)] where these rows stand. Raises DataError for an id that is not here."""
        return look_up(self._positions, ids)

    def subset(self, positions: Sequence[int] | np.ndarray) -> MemoryIndex:
        """The rows at these positions, in the order asked for."""
        chosen = np.asarray(positions, dtype=np.int64)
        features = {name: tensor[torch.from_numpy(chosen)] for name, tensor in self._features.items()}
        columns = {name: column[chosen] for name, column in self._columns.items()}
        members = [replace(member, index=_subset(member.index, chosen)) for member in self._members]
        return MemoryIndex([self._ids[i] for i in chosen], self.layout, self.gradient_of, features, columns, members)

    def with_members(self, members: Sequence[Member]) -> MemoryIndex:
        """The same rows, with these further indexes of them."""
        return MemoryIndex(self._ids, self.layout, self.gradient_of, self._features, self._columns, members)

    def norms(self, feature: str) -> Tensor:
        """[N] Euclidean norms; NaN for a bad row."""
        if feature not in self._norms:
            norms_N = codec.norms(Stored(self._feature(feature)), None)
            if "bad" in self._columns:
                norms_N[torch.from_numpy(self._columns["bad"].astype(bool))] = torch.nan
            self._norms[feature] = norms_N
        return self._norms[feature]

    def stored_blocks(self, feature: str) -> Iterator[tuple[int, Stored]]:
        rows_ND = self._feature(feature)
        for start in range(0, len(rows_ND), BLOCK_ROWS):
            yield start, Stored(rows_ND[start : start + BLOCK_ROWS])

    def stored_rows(self, feature: str, positions: Sequence[int] | np.ndarray) -> Stored:
        return Stored(self._feature(feature)[torch.as_tensor(np.asarray(positions, dtype=np.int64))])

    def _feature(self, name: str) -> Tensor:
        if name not in self._features:
            raise DataError(f"there is no feature {name!r} here; there are {sorted(self._features)}")
        return self._features[name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {id: i for i, id in enumerate(self._ids)}


def _subset(index: Any, chosen: np.ndarray) -> MemoryIndex:
    return index.subset(chosen)


def look_up(positions: Mapping[str, int], ids: Sequence[str]) -> np.ndarray:
    if unknown := [id for id in ids if id not in positions]:
        raise DataError(
            f"{len(unknown)} of {len(ids)} ids are not in this index ({', '.join(unknown[:3])}): never indexed, or removed since"
        )
    return np.array([positions[id] for id in ids], dtype=np.int64)


def _as_array(column: Sequence[object] | np.ndarray) -> np.ndarray:
    """Text as objects, as the stored index gives it: numpy's own strings would each take the longest one's room."""
    array = np.asarray(column)
    return array if array.dtype.kind in "biufO" else np.asarray(column, dtype=object)
