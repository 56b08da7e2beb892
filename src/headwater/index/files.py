"""The files of an index, and the records that bind them: a part promises rows, a commit seals a shard of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from headwater.atomic import read_json, sync_folder, write_json
from headwater.types import IntegrityError

REDO = (
    "Run `headwater verify --repair RUN` to find what is damaged, "
    "then the same `headwater index` command again: it redoes exactly those rows."
)


def range_name(rows: range) -> str:
    """Rows 0..512 are "000000000-000000512": the end is not included, names sort as rows do."""
    return f"{rows.start:09d}-{rows.stop:09d}"


def folder(run: Path, kind: str) -> Path:
    """`kind` is one of parts, shards, commits, tombstones."""
    return run / "index" / kind


def tensors_path(run: Path, rows: range) -> Path:
    return folder(run, "shards") / f"{range_name(rows)}.safetensors"


def table_path(run: Path, rows: range) -> Path:
    return folder(run, "shards") / f"{range_name(rows)}.parquet"


def commit_path(run: Path, rows: range) -> Path:
    return folder(run, "commits") / f"{range_name(rows)}.json"


def part_path(run: Path, rows: range) -> Path:
    return folder(run, "parts") / f"{range_name(rows)}.json"


# ---------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class PartRecord:
    """One corpus in the index: which absolute rows are promised, and in which shards they will come."""

    rows: range
    fingerprint: str
    shards: tuple[range, ...]

    @staticmethod
    def plan(start: int, n_rows: int, fingerprint: str, shard_rows: int) -> PartRecord:
        rows = range(start, start + n_rows)
        return PartRecord(rows, fingerprint, tuple(rows[i : i + shard_rows] for i in range(0, n_rows, shard_rows)))

    def to_json(self) -> dict[str, Any]:
        shards = [[shard.start, shard.stop] for shard in self.shards]
        return {"rows": [self.rows.start, self.rows.stop], "fingerprint": self.fingerprint, "shards": shards}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> PartRecord:
        return PartRecord(range(*value["rows"]), str(value["fingerprint"]), tuple(range(*shard) for shard in value["shards"]))


def write_part(run: Path, part: PartRecord) -> None:
    write_json(part_path(run, part.rows), part.to_json())


def read_part(path: Path) -> PartRecord:
    way_out = "It says which rows belong together: restore it, or index again into another folder."
    value = read_json(path, way_out=way_out)
    try:
        part = PartRecord.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not the record of a part ({type(error).__name__}: {error}). {way_out}") from error
    if [row for shard in part.shards for row in (shard.start, shard.stop)] != _edges(part):
        raise IntegrityError(f"{path}: its shards do not cover its rows {part.rows.start}..{part.rows.stop} one after the other. {way_out}")
    return part


def read_parts(run: Path) -> list[PartRecord]:
    """Every part, in row order. Raises IntegrityError where one is damaged, or they leave a gap or overlap."""
    parts = sorted((read_part(path) for path in folder(run, "parts").glob("[0-9]*.json")), key=lambda part: part.rows.start)
    expected = 0
    for part in parts:
        if part.rows.start != expected:
            what = "a part is missing" if part.rows.start > expected else "two parts overlap"
            raise IntegrityError(
                f"{part_path(run, part.rows)} starts at row {part.rows.start}, expected {expected}: {what}. "
                "Restore the file that was there, or index again into another folder."
            )
        expected = part.rows.stop
    return parts


def _edges(part: PartRecord) -> list[int]:
    """The start and stop of each shard, if each starts where the last one stopped."""
    stops = [shard.stop for shard in part.shards]
    starts = [part.rows.start, *stops[:-1]]
    if not stops or stops[-1] != part.rows.stop:
        return []
    return [edge for pair in zip(starts, stops, strict=True) for edge in pair]


# -------------------------------------------------------------------------------------------------------- commits


@dataclass(frozen=True)
class Seal:
    """A file as it was when it was committed."""

    n_bytes: int
    xxh3_64: str

    @staticmethod
    def of(content: bytes) -> Seal:
        return Seal(len(content), xxhash.xxh3_64_hexdigest(content))


@dataclass(frozen=True)
class Commit:
    """The presence of this record makes a shard part of the index. `spec` is the fingerprint of the index it was written for."""

    rows: range
    spec: str
    n_bad: int
    tensors: Seal
    table: Seal

    def to_json(self) -> dict[str, Any]:
        files = {
            name: {"bytes": seal.n_bytes, "xxh3_64": seal.xxh3_64}
            for name, seal in (("safetensors", self.tensors), ("parquet", self.table))
        }
        return {"rows": [self.rows.start, self.rows.stop], "spec": self.spec, "n_bad": self.n_bad, "files": files}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Commit:
        seals = {name: Seal(int(file["bytes"]), str(file["xxh3_64"])) for name, file in value["files"].items()}
        return Commit(range(*value["rows"]), str(value["spec"]), int(value["n_bad"]), seals["safetensors"], seals["parquet"])

    def files(self, run: Path) -> dict[Path, Seal]:
        return {tensors_path(run, self.rows): self.tensors, table_path(run, self.rows): self.table}


def write_commit(run: Path, commit: Commit) -> None:
    write_json(commit_path(run, commit.rows), commit.to_json())


def read_commit(run: Path, rows: range, *, spec: str) -> Commit:
    """The commit of these rows, with the sizes of its two files checked (their hashes only in `verify`).

    Raises IntegrityError naming the file where the commit is damaged, or belongs to an index of another spec, or a file is
    missing or has another size.
    """
    path = commit_path(run, rows)
    value = read_json(path, way_out=REDO)
    try:
        commit = Commit.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a commit ({type(error).__name__}: {error}). {REDO}") from error
    if (commit.rows, commit.spec) != (rows, spec):
        raise IntegrityError(
            f"{path} seals rows {commit.rows} of index {commit.spec}, expected {rows} of {spec}: a file of another run. {REDO}"
        )
    for file, seal in commit.files(run).items():
        found = f"{file.stat().st_size} bytes" if file.exists() else "no file"
        if found != f"{seal.n_bytes} bytes":
            raise IntegrityError(f"{file}: {found}, expected {seal.n_bytes} bytes as committed: cut short or lost. {REDO}")
    return commit


def committed(run: Path, *, spec: str) -> list[Commit]:
    """The commits of all parts, in row order; shards that are still to be written are left out. Raises as `read_commit` does."""
    shards = [shard for part in read_parts(run) for shard in part.shards]
    return [read_commit(run, rows, spec=spec) for rows in shards if commit_path(run, rows).exists()]


def withdraw_commit(run: Path, rows: range) -> None:
    """Take the shard out of the index before its files change: a commit never seals other bytes than it was written for."""
    path = commit_path(run, rows)
    if path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
