"""Run a run again from its own record, and say whether the numbers came out the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headwater.corpus import read_queries
from headwater.index.build import IN_MEMORY, build_index, encoding, environment, open_session
from headwater.index.files import folder
from headwater.progress import say
from headwater.rank.trace import trace_queries
from headwater.recipe import IndexRecipe, TraceRecipe
from headwater.types import IntegrityError, UsageError


@dataclass(frozen=True)
class Replay:
    """What was compared, file by file: shards and score matrices of the first run and of its repetition."""

    run: str
    out: str
    compared: int
    different: list[str]
    environment_changes: dict[str, list[Any]]

    @property
    def identical(self) -> bool:
        return not self.different

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "identical": self.identical}


def replay(run: Path, out: Path) -> Replay:
    """Index and trace again into `out` as run.json, run-2.json, ... and the traces say; compare bytes.

    Raises UsageError where the data or queries were given in memory and cannot be read again, or `out` is the run itself.
    """
    if out.resolve() == run.resolve():
        raise UsageError(f"replay writes a second run: give a folder other than {run} (-o)")
    records = _records(run)
    session = open_session(IndexRecipe.parse(records[0]["recipe"]).model)
    if session.fingerprint != records[0]["model_fingerprint"]:
        raise IntegrityError(f"the model {session.name} has other weights than when {run} was made: a replay would not repeat it")
    for record in records:
        recipe = IndexRecipe.parse(record["recipe"])
        if recipe.data.source == IN_MEMORY:
            raise UsageError(f"{run} was made from data in memory: save it to a file and index that, to be able to replay")
        build_index(recipe, out, session=session, append=record["append"])
    for traced in sorted((run / "scores").glob("*/trace.json")):
        _trace_again(traced, out, IndexRecipe.parse(records[0]["recipe"]), session)
    return _compare(run, out, records[0])


def _records(run: Path) -> list[dict[str, Any]]:
    paths = [path for path in (run / "run.json", *sorted(run.glob("run-*.json"))) if path.exists()]
    if not paths:
        raise UsageError(f"{run} has no run.json: it is not a run folder")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _trace_again(traced: Path, out: Path, indexed: IndexRecipe, session: Any) -> None:
    recipe = TraceRecipe.parse(json.loads(traced.read_text(encoding="utf-8"))["recipe"])
    lines = (traced.parent / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    given = [json.loads(line) for line in lines]
    queries = read_queries(given, session.tokenizer, **encoding(indexed.data, session))
    trace_queries(out, recipe, queries, session=session, given=given)


def _compare(run: Path, out: Path, record: dict[str, Any]) -> Replay:
    kinds = [*sorted(folder(run, "shards").glob("*")), *sorted((run / "scores").glob("*/*.safetensors"))]
    different = [str(path.relative_to(run)) for path in kinds if not _same(path, out / path.relative_to(run))]
    before, now = record["environment"], environment()
    changes = {name: [before[name], now[name]] for name in now if before.get(name) != now[name]}
    for name in different:
        say(f"different: {name}")
    return Replay(str(run), str(out), len(kinds), different, changes)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()
