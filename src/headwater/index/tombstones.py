"""Removed rows: a tombstone names their ids and says why. Their bytes stay; nothing answers with them any more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from headwater.atomic import read_json, write_json
from headwater.index.files import committed, folder, table_path
from headwater.index.spec import read_spec
from headwater.index.table import read_column
from headwater.types import DataError, IntegrityError


def add_tombstones(run: str | Path, ids: Iterable[str], *, reason: str) -> int:
    """Remove rows from what the index answers with. Returns how many were not removed before.

    Raises DataError where an id is not in the index: nothing is removed then.
    """
    run, asked = Path(run), set(ids)
    if unknown := sorted(asked - _stored_ids(run)):
        raise DataError(
            f"{len(unknown)} of {len(asked)} ids are not in {run} ({', '.join(unknown[:3])}): nothing was removed. Take ids of this run."
        )
    new = sorted(asked - read_tombstones(run).keys())
    if new:
        name = hashlib.sha256(json.dumps(new).encode()).hexdigest()[:16]
        write_json(folder(run, "tombstones") / f"{name}.json", {"ids": new, "reason": reason})
    return len(new)


def read_tombstones(run: Path) -> dict[str, str]:
    """{removed id: reason}. Raises IntegrityError where a file of them is damaged."""
    way_out = "It lists removed rows: restore it, or delete it to have its rows back."
    removed: dict[str, str] = {}
    for path in sorted(folder(run, "tombstones").glob("*.json")):
        value = read_json(path, way_out=way_out)
        ids = value.get("ids")
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise IntegrityError(f'{path} has no list of "ids". {way_out}')
        removed |= dict.fromkeys(ids, str(value.get("reason", "")))
    return removed


def _stored_ids(run: Path) -> set[str]:
    commits = committed(run, spec=read_spec(run).fingerprint)
    return {id for commit in commits for id in read_column(table_path(run, commit.rows), "id").tolist()}
