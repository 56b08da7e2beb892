"""Run a run again from its own record, and say whether the numbers came out the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headwater.atomic import read_json, write_atomically
from headwater.corpus import read_queries
from headwater.index.build import IN_MEMORY, encoding, environment, index_corpus, open_corpus, open_session
from headwater.index.files import folder
from headwater.index.member_files import member_home, read_members, write_member
from headwater.index.read import StoredIndex
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import say
from headwater.rank.trace import trace_queries
from headwater.recipe import IndexRecipe, TraceRecipe
from headwater.types import IntegrityError, UsageError


@dataclass(frozen=True)
class Replay:
    """What was compared, file by file: shards and score matrices of the first run and of its repetition.

    `skipped` says of each trace that could not be repeated why: made with a measure of one's own, or over other rows than there are now.
    """

    run: str
    out: str
    compared: int
    different: list[str]
    skipped: dict[str, str]
    environment_changes: dict[str, list[Any]]

    @property
    def identical(self) -> bool:
        return not self.different

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "identical": self.identical}


def replay(run: Path, out: Path) -> Replay:
    """Index and trace again into `out` as run.json, run-2.json, ... and the traces say, members as their own run.json; compare bytes.

    Raises UsageError where the data was given in memory and cannot be read again, or `out` is the run itself, and IntegrityError where the
    model is another by now.
    """
    if out.resolve() == run.resolve():
        raise UsageError(f"replay writes a second run: give a folder other than {run} (-o)")
    records = _records(run)
    indexed = IndexRecipe.parse(records[0]["recipe"])
    if any(record["recipe"]["data"]["source"] == IN_MEMORY for record in records):
        raise UsageError(f"{run} was made from data in memory: save it to a file and index that, to be able to replay")
    session = open_session(indexed.model)
    _index_again(run, out, session)
    _copy_tombstones(run, out)
    skipped = _trace_again(run, out, indexed, session)
    return _compare(run, out, records[0], skipped)


def _index_again(run: Path, out: Path, main: Session) -> None:
    """The main index from its records; then each member from its own, as the run that it is."""
    _index_one(run, out, main)
    for record in read_members(run):
        write_member(out, record)
        if not record.is_main:
            home = member_home(run, record.name)
            options = IndexRecipe.parse(_records(home)[0]["recipe"]).model
            _index_one(home, member_home(out, record.name), open_session(options, tokenizer=main.tokenizer))


def _index_one(run: Path, out: Path, session: Session) -> None:
    for record in _records(run):
        if session.fingerprint != record["model_fingerprint"]:
            raise IntegrityError(
                f"the model {session.adapter or session.name} has other weights than when {run} was made: a replay would not repeat it. "
                "Put the weights of that time back, or index again."
            )
        recipe = IndexRecipe.parse(record["recipe"])
        corpus = open_corpus(recipe.data, session)
        index_corpus(recipe, out, session=session, corpus=corpus, append=record["append"])


def _records(run: Path) -> list[dict[str, Any]]:
    """run.json, then run-2.json, ... of the corpora appended to it."""
    if not (run / "run.json").exists():
        raise IntegrityError(f"{run} has no run.json: it is no run folder, or its index was never begun")
    later = sorted(run.glob("run-*.json"), key=lambda path: int(path.stem.removeprefix("run-")))
    way_out = "It is written once and says how to repeat the run: restore it from a copy."
    return [read_json(path, way_out=way_out) for path in (run / "run.json", *later)]


def _copy_tombstones(run: Path, out: Path) -> None:
    """Removed rows are a decision, not a result: they are taken over."""
    for path in folder(run, "tombstones").glob("*.json"):
        write_atomically(folder(out, "tombstones") / path.name, path.read_bytes())


def _trace_again(run: Path, out: Path, indexed: IndexRecipe, session: Session) -> dict[str, str]:
    """Repeat what can be repeated; {trace: why not} of the rest."""
    ids, skipped = list(StoredIndex.open(out).ids), {}
    way_out = "Delete this trace's folder, or trace again."
    for path in sorted((run / "scores").glob("*/trace.json")):
        recipe = read_json(path, way_out=way_out)["recipe"]
        if recipe["measure"] not in measures.MEASURES:
            skipped[path.parent.name] = f"the measure {recipe['measure']!r} is not built in"
        elif read_json(path.with_name("ids.json"), way_out=way_out)["train_ids"] != ids:
            skipped[path.parent.name] = "rows were appended or removed since"
        else:
            given = [json.loads(line) for line in path.with_name("queries.jsonl").read_text(encoding="utf-8").splitlines()]
            queries = read_queries(given, session.tokenizer, **encoding(indexed.data, session))
            trace_queries(out, TraceRecipe.parse(recipe), queries, session=session, given=given)
    return skipped


def _compare(run: Path, out: Path, record: dict[str, Any], skipped: dict[str, str]) -> Replay:
    homes = [run, *(member_home(run, member.name) for member in read_members(run) if not member.is_main)]
    shards = [path for home in homes for path in sorted(folder(home, "shards").glob("[!.]*"))]
    scores = [path for path in sorted((run / "scores").glob("*/*.safetensors")) if path.parent.name not in skipped]
    different = [str(path.relative_to(run)) for path in (*shards, *scores) if not _same(path, out / path.relative_to(run))]
    before, now = record["environment"], environment()
    changes = {name: [before[name], now[name]] for name in now if before.get(name) != now[name]}
    for name in different:
        say(f"different: {name}")
    return Replay(str(run), str(out), len(shards) + len(scores), different, skipped, changes)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()
