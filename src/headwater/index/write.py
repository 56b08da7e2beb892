"""Filling an index: parts promise rows, shards bring them, a commit makes them count. Any number of writers, no lock.

N rows of a shard · D stored numbers of a gradient row · H hidden size · K blocks of the layout
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from headwater.atomic import remove_left_overs, write_atomically
from headwater.index import codec
from headwater.index.files import (
    Commit,
    PartRecord,
    Seal,
    folder,
    range_name,
    read_commit,
    read_parts,
    table_path,
    tensors_path,
    withdraw_commit,
    write_commit,
    write_part,
)
from headwater.index.spec import IndexSpec, create_spec
from headwater.index.table import import_pandas, read_column, table_bytes
from headwater.types import DataError, IntegrityError, LayoutMismatch, UsageError


@dataclass(frozen=True)
class ShardData:
    """The rows of one shard, as computed: float32, not yet in the dtype of the index.

    `gradient_norm_NK` is the norm of each block as sketched, before it is rounded to the stored
    dtype. `columns` is the row table (`table.SCHEMA`); "bad" may be left out: a row whose gradient is not finite is bad in any case, and
    keeps its NaNs. `extra` are the further features that the spec names, [N, width] each.
    """

    gradient_ND: Tensor
    gradient_norm_NK: Tensor
    columns: Mapping[str, Sequence[Any]]
    representation_NH: Tensor | None = None
    representation_response_NH: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class PreparedShard:
    """What one shard's files will hold."""

    rows: range
    tensors: dict[str, Tensor]
    columns: dict[str, Sequence[Any]]
    n_bad: int


@dataclass(frozen=True)
class Part:
    """One corpus in the index, and what of it is still to be written."""

    run: Path
    record: PartRecord
    spec: IndexSpec

    @property
    def rows(self) -> range:
        """Absolute row numbers; row k of the corpus is `rows[k]`."""
        return self.record.rows

    def missing(self) -> list[range]:
        """The shards without a valid commit, as absolute row numbers. A shard whose files changed size counts as missing."""
        return [rows for rows in self.record.shards if not is_committed(self.run, rows, self.spec)]


class Writer:
    """Writes shards into `run/index`.

    Two writers may fill different shards of a part at the same time: a shard's files are its own, and its bytes depend on
    its rows alone. Two writers on the *same* shard waste work and do no harm.
    """

    def __init__(self, run: Path, spec: IndexSpec) -> None:
        import_pandas()
        self.run, self.spec = run, spec
        self._parts = read_parts(run)
        self._known_ids: dict[str, range] | None = None

    @staticmethod
    def open(run: str | Path, spec: IndexSpec) -> Writer:
        """Create the index, or reopen it to go on. Raises LayoutMismatch or IntegrityError where another spec is there."""
        create_spec(Path(run), spec)
        return Writer(Path(run), spec)

    def begin(self, fingerprint: str, n_rows: int, *, append: bool = False) -> Part:
        """The part of the corpus `fingerprint`: the one that is there (to resume it), or a new one.

        A second corpus needs `append`. Raises DataError for an empty corpus and IntegrityError, with the way out, where the
        folder holds another corpus, or the corpus is there and complete, or an earlier one is unfinished.
        """
        if n_rows < 1:
            raise DataError("the corpus has no rows to index. See the corpus report for why rows were left out.")
        for kind in ("", "parts", "shards", "commits", "tombstones"):
            remove_left_overs(folder(self.run, kind))
        parts = [Part(self.run, record, self.spec) for record in read_parts(self.run)]
        same = next((part for part in parts if part.record.fingerprint == fingerprint), None)
        part = self._new_part(parts, fingerprint, n_rows, append=append) if same is None else _resumed(same, n_rows, append=append)
        self._parts, self._known_ids = read_parts(self.run), None
        return part

    def _new_part(self, parts: list[Part], fingerprint: str, n_rows: int, *, append: bool) -> Part:
        if parts and not append:
            raise IntegrityError(
                f"{self.run} holds another corpus ({parts[0].record.fingerprint}, asked {fingerprint}): the data or the options that "
                "read it differ. Pass --append to add this corpus to it, or choose another folder (-o)."
            )
        for part in parts:
            if missing := part.missing():
                raise IntegrityError(
                    f"{self.run}: rows {part.rows.start}..{part.rows.stop} of corpus {part.record.fingerprint} are unfinished "
                    f"({len(missing)} of {len(part.record.shards)} shards missing). Finish them with the command that began them first."
                )
        record = PartRecord.plan(parts[-1].rows.stop if parts else 0, n_rows, fingerprint, self.spec.shard_rows)
        write_part(self.run, record)
        return Part(self.run, record, self.spec)

    def write(self, rows: range, data: ShardData) -> None:
        """Write one shard of a part: tensors, then table, then the commit that makes both count.

        Cost: one copy of the shard in memory and three fsyncs. Raises LayoutMismatch for rows of another width, DataError for
        columns that do not fit or ids that another row has, IntegrityError where the disk refuses. Until the commit is
        written nothing of the shard is part of the index.
        """
        self.commit(self.prepare(rows, data))

    def prepare(self, rows: range, data: ShardData) -> PreparedShard:
        """Check the rows and put them into the dtype of the index: the part of `write` that computes."""
        self._check_shapes(rows, data)
        self._check_ids(rows, list(data.columns["id"]))
        stored = codec.encode(data.gradient_ND.float(), self.spec.dtype, self.spec.layout)
        norms_N = codec.norms(stored, self.spec.layout)
        bad_N = torch.isnan(norms_N) | torch.tensor(data.columns.get("bad", [False] * len(rows)), dtype=torch.bool)
        return PreparedShard(rows, self._tensors(data, stored, norms_N), {**data.columns, "bad": bad_N.tolist()}, int(bad_N.sum()))

    def commit(self, shard: PreparedShard) -> None:
        """The part of `write` that goes to disk."""
        # not safetensors' own `save_file`: its temporary file has no lock, and stays where the process is killed
        tensors, table, rows = safetensors.torch.save(shard.tensors), table_bytes(shard.columns), shard.rows
        withdraw_commit(self.run, rows)
        write_atomically(tensors_path(self.run, rows), tensors)
        write_atomically(table_path(self.run, rows), table)
        write_commit(self.run, Commit(rows, self.spec.fingerprint, shard.n_bad, Seal.of(tensors), Seal.of(table)))

    def _tensors(self, data: ShardData, stored: codec.Stored, norms_N: Tensor) -> dict[str, Tensor]:
        tensors = {
            "gradient": stored.values_ND,
            "gradient_scale": stored.scale_NK,
            "gradient_stored_norm": norms_N,
            "gradient_norm": data.gradient_norm_NK.float(),
            "representation": self._representation(data.representation_NH),
            "representation_response": self._representation(data.representation_response_NH),
            **{name: self._representation(tensor) for name, tensor in data.extra.items()},
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}

    def _representation(self, hidden_NH: Tensor | None) -> Tensor | None:
        return None if hidden_NH is None else hidden_NH.to(torch.float32 if self.spec.dtype == "float32" else torch.bfloat16)

    def _check_shapes(self, rows: range, data: ShardData) -> None:
        if not any(rows in part.shards for part in self._parts):
            raise UsageError(f"{range_name(rows)} is no shard of this index: write the ranges that Part.missing() gives")
        N, layout = len(rows), self.spec.layout
        hidden = None if self.spec.hidden_size is None else (N, self.spec.hidden_size)
        expected = {
            "gradient": (data.gradient_ND, (N, layout.size)),
            "gradient_norm": (data.gradient_norm_NK, (N, len(layout.blocks))),
            "representation": (data.representation_NH, hidden),
            "representation_response": (data.representation_response_NH, hidden if data.representation_response_NH is not None else None),
            **{name: (data.extra.get(name), (N, int(about["width"]))) for name, about in self.spec.extra.items()},
            **{name: (tensor, None) for name, tensor in data.extra.items() if name not in self.spec.extra},
        }
        for name, (tensor, shape) in expected.items():
            found = None if tensor is None else tuple(tensor.shape)
            if found != shape:
                raise LayoutMismatch(f"{name} is {found}, expected {shape} by the index's layout: rows of another model or sketch")
        if short := {name: len(column) for name, column in data.columns.items() if len(column) != N}:
            raise DataError(f"row table: columns of {N} rows expected, found {short}")

    def _check_ids(self, rows: range, ids: Sequence[str]) -> None:
        """One id, one row: against the earlier parts, which are complete, and against what this writer wrote."""
        known = self._ids_before(rows)
        twice = sorted({id for id, n in Counter(ids).items() if n > 1 or known.get(id, rows) != rows})
        if twice:
            raise DataError(
                f"{len(twice)} ids of rows {rows.start}..{rows.stop} are in the index already ({', '.join(twice[:3])}): "
                "the same content a second time. Leave those rows out of what is appended."
            )
        known.update(dict.fromkeys(ids, rows))

    def _ids_before(self, rows: range) -> dict[str, range]:
        if self._known_ids is None:
            earlier = [
                shard
                for part in self._parts
                if rows not in part.shards
                for shard in part.shards
                if is_committed(self.run, shard, self.spec)
            ]
            self._known_ids = {id: shard for shard in earlier for id in read_column(table_path(self.run, shard), "id").tolist()}
        return self._known_ids


def is_committed(run: Path, rows: range, spec: IndexSpec) -> bool:
    """Whether the shard has a commit that fits its files' sizes (hashes are for `verify`)."""
    try:
        read_commit(run, rows, spec=spec.fingerprint)
    except IntegrityError:
        return False
    return True


def _resumed(part: Part, n_rows: int, *, append: bool) -> Part:
    if len(part.rows) != n_rows:
        raise IntegrityError(
            f"{part.run} holds this corpus ({part.record.fingerprint}) with {len(part.rows)} rows, now it has {n_rows}: "
            "the rows that can be indexed changed. Use the options of the first run, or another folder (-o)."
        )
    if append and not part.missing():
        raise IntegrityError(
            f"{part.run} holds this corpus already ({part.record.fingerprint}, rows {part.rows.start}..{part.rows.stop}, complete): "
            "there is nothing to append. Leave out --append to use it as it is."
        )
    return part
