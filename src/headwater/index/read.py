"""The index on disk, as methods see it: committed shards in row order, memory-mapped, without the removed rows.

N live rows · n rows of a shard or block · D numbers of a feature
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headwater.index import codec, scan
from headwater.index.codec import Stored
from headwater.index.files import Commit, committed, read_parts
from headwater.index.member_files import member_home, read_members
from headwater.index.memory import BLOCK_ROWS, MemoryIndex, look_up
from headwater.index.shard import Shard
from headwater.index.spec import IndexSpec, read_spec
from headwater.index.table import SCHEMA
from headwater.index.tombstones import read_tombstones
from headwater.types import DataError, IntegrityError, Layout, Member, MemberRole

TABLES_KEPT = frozenset(SCHEMA.names) - {"prompt", "response"}  # columns worth keeping in memory once read


class StoredIndex:
    """The rows that `run/index` holds and that were not removed. Positions count those rows from 0, in the order of the corpus.

    Opening reads the records, not the numbers: sizes are checked here, hashes in `verify`. Everything else is read when it is
    asked for, and mapped rather than loaded.
    """

    def __init__(self, run: Path, spec: IndexSpec, commits: Sequence[Commit], *, removed: frozenset[str]) -> None:
        self.run, self.spec, self._removed = run, spec, removed
        self._shards = [Shard(run, spec, commit, removed) for commit in commits]
        self._starts = [0, *np.cumsum([len(shard) for shard in self._shards]).tolist()]
        self._columns: dict[str, np.ndarray] = {}
        self._norms: dict[str, Tensor] = {}
        self._members: dict[MemberRole, tuple[Member, ...]] = {}

    @staticmethod
    def open(run: str | Path) -> StoredIndex:
        """Raises IntegrityError, naming the file and the way out, where there is no index or it is damaged."""
        run = Path(run)
        spec = read_spec(run)
        return StoredIndex(run, spec, committed(run, spec=spec.fingerprint), removed=frozenset(read_tombstones(run)))

    @property
    def layout(self) -> Layout:
        return self.spec.layout

    @property
    def gradient_of(self) -> str:
        return self.spec.gradient_of

    @property
    def ids(self) -> tuple[str, ...]:
        return self._ids

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        return tuple(self.column("id").tolist())

    @property
    def features(self) -> frozenset[str]:
        return self._features

    @cached_property
    def _features(self) -> frozenset[str]:
        names = [shard.tensors.keys() - {"gradient_scale", "gradient_stored_norm"} for shard in self._shards]
        return frozenset.intersection(*map(frozenset, names)) if names else frozenset()

    @property
    def n_bad(self) -> int:
        """Live rows whose gradient is not finite."""
        return int(self.column("bad").sum())

    @cached_property
    def missing_rows(self) -> tuple[range, ...]:
        """Shards that were promised and are not committed, as absolute row numbers: empty when indexing has finished."""
        present = {shard.commit.rows for shard in self._shards}
        return tuple(rows for part in read_parts(self.run) for rows in part.shards if rows not in present)

    def __len__(self) -> int:
        return self._starts[-1]

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        for start, stored in self.stored_blocks(feature):
            yield start, codec.decode(stored, self.layout)

    def take(self, feature: str, positions: Sequence[int] | np.ndarray) -> Tensor:
        return codec.decode(self.stored_rows(feature, positions), self.layout)

    def products(self, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
        """[Q, N] float32; NaN for a bad row. See `headwater.index.scan.products`."""
        return scan.products(self, feature, queries_QD, scale_N=scale_N)

    def column(self, name: str) -> np.ndarray:
        """[N] one column of the row table. Text and ids are objects; a number that may be missing (label) is NaN where it is."""
        if name not in SCHEMA.names:
            raise DataError(f"there is no column {name!r} here; there are {SCHEMA.names}")
        if name in self._columns:
            return self._columns[name]
        parts = [shard.column(name) for shard in self._shards]
        column = np.concatenate(parts) if parts else np.empty(0, SCHEMA.field(name).type.to_pandas_dtype())
        if name in TABLES_KEPT:
            self._columns[name] = column
        return column

    def members(self, role: MemberRole) -> tuple[Member, ...]:
        """Opened when they are first asked for. IntegrityError where one is unfinished or has other rows than this index."""
        if role not in self._members:
            records = [record for record in read_members(self.run) if record.role == role]
            self._members[role] = tuple(
                Member(record.name, role, self if record.is_main else self._open_member(record.name), record.step, record.learning_rate)
                for record in records
            )
        return self._members[role]

    def _open_member(self, name: str) -> StoredIndex:
        """Without the rows that were removed from this index."""
        home = member_home(self.run, name)
        spec = read_spec(home)
        member = StoredIndex(home, spec, committed(home, spec=spec.fingerprint), removed=self._removed)
        if member.ids != self.ids:
            missing = sum(len(rows) for rows in member.missing_rows)
            why = f"{missing:,} of its rows are not indexed yet" if missing else "rows were added to the run since, or to the member alone"
            raise IntegrityError(
                f"member {name!r} of {self.run} has {len(member):,} rows, the run {len(self):,}, not the same in the same order: {why}. "
                "Run the `headwater index` command that made it again: it goes on where it stopped."
            )
        return member

    def positions_of(self, ids: Sequence[str]) -> np.ndarray:
        """[len(ids)] where these rows stand. Raises DataError for an id that is not here."""
        return look_up(self._positions, ids)

    def subset(self, positions: Sequence[int] | np.ndarray) -> MemoryIndex:
        """The rows at these positions, in the order asked for, read into memory; without the members."""
        chosen = np.asarray(positions, dtype=np.int64)
        features = {name: self.take(name, chosen) for name in sorted(self.features)}
        columns = {name: self.column(name)[chosen] for name in SCHEMA.names}
        return MemoryIndex([self.ids[i] for i in chosen], self.layout, self.gradient_of, features, columns)

    def norms(self, feature: str) -> Tensor:
        """[N] Euclidean norms of the stored numbers; NaN for a bad row. The gradient's are stored, others cost one pass."""
        if feature not in self._norms:
            norms_N = torch.cat([torch.empty(0), *self._norms_of_blocks(feature)])
            norms_N[torch.from_numpy(self.column("bad"))] = torch.nan
            self._norms[feature] = norms_N
        return self._norms[feature]

    def _norms_of_blocks(self, feature: str) -> Iterator[Tensor]:
        if feature == "gradient":
            return (stored.values_ND for _, stored in self.stored_blocks("gradient_stored_norm"))
        return (codec.norms(stored, self.layout) for _, stored in self.stored_blocks(feature))

    def stored_blocks(self, feature: str) -> Iterator[tuple[int, Stored]]:
        """(position of the first row, live rows in the stored dtype); views of the file where no row was removed."""
        self._check_feature(feature)
        for start, shard in zip(self._starts, self._shards, strict=False):
            for first in range(0, len(shard), BLOCK_ROWS):
                yield start + first, shard.rows(feature, slice(first, min(first + BLOCK_ROWS, len(shard))))

    def stored_rows(self, feature: str, positions: Sequence[int] | np.ndarray) -> Stored:
        """Chosen rows in the stored dtype, in the order asked for."""
        self._check_feature(feature)
        asked = np.asarray(positions, dtype=np.int64)
        if len(asked) and not (asked.min() >= 0 and asked.max() < len(self)):
            raise DataError(f"positions {asked.min()}..{asked.max()} asked for, this index has rows 0..{len(self) - 1}")
        order = np.argsort(asked, kind="stable")
        cuts = np.searchsorted(asked[order], self._starts)
        held = [i for i in range(len(self._shards)) if cuts[i] < cuts[i + 1]]
        pieces = [self._shards[i].rows(feature, asked[order[cuts[i] : cuts[i + 1]]] - self._starts[i]) for i in held]
        return _reordered(pieces, order) if pieces else Stored(torch.empty(0, self._width(feature)))

    def _check_feature(self, feature: str) -> None:
        if self._shards and feature not in self._shards[0].tensors:
            raise DataError(f"there is no feature {feature!r} in {self.run}; there are {sorted(self.features)}")

    def _width(self, feature: str) -> int:
        return self._shards[0].tensors[feature].shape[1] if self._shards else self.layout.size

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {id: i for i, id in enumerate(self.ids)}


def _reordered(pieces: list[Stored], order: np.ndarray) -> Stored:
    """Pieces sorted by position, back in the order that was asked for: row i of the pieces goes to place order[i]."""
    values_ND = torch.cat([piece.values_ND for piece in pieces]) if len(pieces) > 1 else pieces[0].values_ND
    scales = [piece.scale_NK for piece in pieces if piece.scale_NK is not None]
    joined = Stored(values_ND, torch.cat(scales) if scales else None)
    if np.array_equal(order, np.arange(len(order))):
        return joined
    return joined.rows(torch.from_numpy(np.argsort(order)))
