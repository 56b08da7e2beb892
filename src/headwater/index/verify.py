"""Is the index what its records say? Every byte is read and hashed; every problem is a Finding, none an exception."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headwater.atomic import left_overs
from headwater.index.files import (
    Commit,
    PartRecord,
    Seal,
    commit_path,
    folder,
    part_path,
    read_commit,
    read_parts,
    table_path,
    tensors_path,
    withdraw_commit,
)
from headwater.index.member_files import member_home, read_members
from headwater.index.shard import map_tensors, tensors_problem
from headwater.index.spec import IndexSpec, read_spec
from headwater.index.table import read_column
from headwater.index.tombstones import read_tombstones
from headwater.progress import track
from headwater.types import Finding, HeadwaterError

RESUME = "Run the same `headwater index` command again: it writes the missing shards and touches nothing else."
REPAIR = "Run `headwater verify --repair` on this run, then the same `headwater index` command again: it redoes exactly this shard."


def verify(run: str | Path, *, repair: bool = False) -> list[Finding]:
    """Check spec, parts, commits, hashes, tensors, row tables, ids, tombstones, and files that belong to nothing; then each member
    alike, of which one finding says that all is well.

    `repair` withdraws the commits of damaged shards, and only those, so that resuming redoes exactly them. Cost: one read of
    the index. Never raises on damage: what is wrong is a Finding with status "fail", or "warn" where nothing is lost.
    """
    run = Path(run)
    return [*_verify_one(run, repair=repair), *_member_findings(run, repair=repair)]


def _member_findings(run: Path, *, repair: bool) -> Iterator[Finding]:
    """Under each member's name. A member's rows are the run's, in the same order."""
    try:
        records = read_members(run)
    except HeadwaterError as error:
        yield _fail("members", str(error), "Run the `headwater index` command that made it again.")
        return
    for record in records:
        home = member_home(run, record.name)
        findings = [] if record.is_main else _verify_one(home, repair=repair)
        wrong = [replace(finding, name=f"{record.name}: {finding.name}") for finding in findings if finding.status != "ok"]
        yield from wrong or [Finding(f"member {record.name}", "ok", "the main index's own rows" if record.is_main else "whole, as written")]
    if records:
        yield _same_rows(run, [record.name for record in records if not record.is_main])


def _same_rows(run: Path, names: Sequence[str]) -> Finding:
    """By the parts, which every index has from its first row on."""
    promised = [part.fingerprint for part in read_parts(run)]
    wrong = [name for name in names if [part.fingerprint for part in read_parts(member_home(run, name))] != promised]
    if not wrong:
        return Finding("members", "ok", "every member is of the same corpora as the run", value=len(names), n=len(names))
    because = f"{', '.join(wrong[:3])}: not of the same corpora as the run, so no method can use it yet"
    return Finding("members", "warn", because, value=len(wrong), n=len(names), next_step=RESUME)


def _verify_one(run: Path, *, repair: bool) -> list[Finding]:
    try:
        spec, parts = read_spec(run), read_parts(run)
    except HeadwaterError as error:
        return [_fail("index records", str(error), "Nothing else can be checked without it.")]
    shards = [rows for part in parts for rows in part.shards]
    committed = [rows for rows in shards if commit_path(run, rows).exists()]
    damage = {rows: _problem(run, spec, rows) for rows in track(committed, total=len(committed), description="verify")}
    damaged = {rows: problem for rows, problem in damage.items() if problem}
    if repair:
        for rows in damaged:
            withdraw_commit(run, rows)
    return [
        *_shard_findings(damaged, n_committed=len(committed), repaired=repair),
        _completeness(shards, committed),
        *_row_findings(run, [rows for rows in committed if rows not in damaged]),
        _orphans(run, parts, committed),
    ]


# ---------------------------------------------------------------------------------------------------- one shard


def _problem(run: Path, spec: IndexSpec, rows: range) -> str | None:
    """The first thing wrong with a committed shard, in words."""
    try:
        commit = read_commit(run, rows, spec=spec.fingerprint)
        return _bytes_problem(run, commit) or _content_problem(run, spec, commit)
    except (HeadwaterError, OSError) as error:
        return str(error)


def _bytes_problem(run: Path, commit: Commit) -> str | None:
    for path, seal in commit.files(run).items():
        found = Seal.of(path.read_bytes())
        if found != seal:
            return f"{path}: xxh3_64 is {found.xxh3_64}, committed as {seal.xxh3_64}: its bytes have changed"
    return None


def _content_problem(run: Path, spec: IndexSpec, commit: Commit) -> str | None:
    path, n_rows = tensors_path(run, commit.rows), len(commit.rows)
    tensors = map_tensors(path)
    if problem := tensors_problem(tensors, spec, n_rows):
        return f"{path}: {problem}"
    bad = read_column(table_path(run, commit.rows), "bad")
    if len(bad) != n_rows:
        return f"{table_path(run, commit.rows)} has {len(bad)} rows, expected {n_rows}"
    unmarked = int((np.isnan(tensors["gradient_stored_norm"].numpy()) & ~bad).sum())
    return f"{path}: {unmarked} rows are not finite and not marked as bad" if unmarked else None


# ------------------------------------------------------------------------------------------------------ findings


def _shard_findings(damaged: dict[range, str], *, n_committed: int, repaired: bool) -> Iterator[Finding]:
    for problem in damaged.values():
        yield _fail("shard", problem, f"Its commit was withdrawn. {RESUME}" if repaired else REPAIR)
    if not damaged:
        yield Finding("shards", "ok", "every commit, size, hash, tensor and row table is as written", value=n_committed, n=n_committed)


def _completeness(shards: list[range], committed: list[range]) -> Finding:
    missing = [rows for rows in shards if rows not in set(committed)]
    if not missing:
        return Finding("completeness", "ok", "every promised row is there", value=sum(map(len, committed)), unit="rows", n=len(shards))
    spans = ", ".join(f"{rows.start}..{rows.stop}" for rows in missing[:5])
    because = f"{len(missing)} of {len(shards)} shards are not written yet: rows {spans}{', ...' if len(missing) > 5 else ''}"
    return Finding("completeness", "warn", because, value=sum(map(len, missing)), unit="rows", n=len(shards), next_step=RESUME)


def _row_findings(run: Path, sound: list[range]) -> Iterator[Finding]:
    ids = [id for rows in sound for id in read_column(table_path(run, rows), "id").tolist()]
    n_bad = sum(int(read_column(table_path(run, rows), "bad").sum()) for rows in sound)
    twice = sorted(id for id, n in Counter(ids).items() if n > 1)
    if twice:
        yield _fail("ids", f"{len(twice)} ids stand for more than one row: {', '.join(twice[:3])}", "Index again into another folder.")
    else:
        yield Finding("ids", "ok", "every row has an id of its own", value=len(ids), n=len(ids))
    yield _tombstones(run, set(ids))
    yield _bad_rows(n_bad, len(ids))


def _tombstones(run: Path, ids: set[str]) -> Finding:
    try:
        removed = read_tombstones(run)
    except HeadwaterError as error:
        return _fail("tombstones", str(error), "Restore the file, or delete it to have its rows back.")
    if unknown := sorted(removed.keys() - ids):
        because = f"{len(unknown)} removed ids are in no sound shard: {', '.join(unknown[:3])}"
        return Finding("tombstones", "warn", because, value=len(unknown), n=len(removed), next_step=RESUME)
    return Finding("tombstones", "ok", "every removed row is one of the index", value=len(removed), n=len(removed))


def _bad_rows(n_bad: int, n_rows: int) -> Finding:
    if not n_bad:
        return Finding("bad rows", "ok", "every row's gradient is finite", value=0, n=n_rows)
    because = f"{n_bad} of {n_rows} rows have a gradient that is not finite: they are kept, and never scored"
    next_step = "Look at their text and length; index with a wider model dtype."
    return Finding("bad rows", "warn", because, value=n_bad, n=n_rows, next_step=next_step)


def _orphans(run: Path, parts: list[PartRecord], committed: list[range]) -> Finding:
    shards = [rows for part in parts for rows in part.shards]
    known = {path for rows in committed for path in (tensors_path(run, rows), table_path(run, rows))}
    known |= {commit_path(run, rows) for rows in shards} | {part_path(run, part.rows) for part in parts}
    folders = [folder(run, kind) for kind in ("parts", "shards", "commits")]
    stray = [path for place in folders for path in sorted(place.glob("[!.]*")) if path not in known]
    stray += [path for place in (*folders, folder(run, "tombstones"), folder(run, "")) for path in left_overs(place)]
    if not stray:
        return Finding("stray files", "ok", "no file without a commit", value=0, n=len(known))
    names = ", ".join(str(path.relative_to(run)) for path in stray[:3])
    because = f"{len(stray)} files belong to no committed shard (a run that was stopped leaves them): {names}"
    return Finding("stray files", "warn", because, value=len(stray), n=len(known), next_step=f"{RESUME} What is left then can be deleted.")


def _fail(name: str, because: str, next_step: str) -> Finding:
    return Finding(name, "fail", because, next_step=next_step)
