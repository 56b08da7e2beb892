"""The library's verbs: `load`, `index`, `trace`, `evaluate`. Each returns an object that shows itself in a notebook and gives a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import methods
from headwater.atomic import read_json
from headwater.corpus import query as encode_query
from headwater.corpus import read_queries, read_rows
from headwater.evaluate.files import Column, Matrix, Tables, evaluate_given
from headwater.evaluate.read import Sign
from headwater.evaluate.summary import Evaluation, Options
from headwater.index.build import IN_MEMORY, encoding, open_session
from headwater.index.examples import stored_examples
from headwater.index.live import needs_model, open_live
from headwater.index.member_files import read_members
from headwater.index.read import StoredIndex
from headwater.index.run import build_index
from headwater.model import measures
from headwater.model.session import Session
from headwater.rank.by_group import group_scores
from headwater.rank.export import newest_trace, read_scores
from headwater.rank.tokens import TokenScores, check_supported, token_scores
from headwater.rank.trace import check_index, fitted, trace_queries
from headwater.recipe import DEFAULT_METHODS, IndexRecipe, TraceRecipe
from headwater.training.folder import TrainerFolder
from headwater.types import DataError, Example, Measure, Scores, Truth, UsageError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "Trace", "encode_query", "encoded_queries", "evaluate", "given_queries", "index", "load", "run_trace", "trace"]

TEXTS = ("prompt", "response", "source", "row")


@dataclass(frozen=True)
class Trace:
    """The answer to one or more queries: what every method says, ranked. `scores` has the whole matrices."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def run(self) -> Path:
        return self.folder.parents[1]

    @property
    def queries(self) -> list[str]:
        return [query["id"] for query in self.record["queries"]]

    @property
    def methods(self) -> list[str]:
        return [method["name"] for method in self.record["methods"]]

    @cached_property
    def scores(self) -> dict[str, Scores]:
        return read_scores(self.folder)

    def top(self, query: int | str = 0, k: int = 10, *, method: str | None = None) -> pd.DataFrame:
        """The k strongest proponents of a query, by position or id, with their errors, z, q-value and text. Method: the primary one."""
        import pandas as pd

        method, rows = self._method(method), self._query(query)["ranked"]
        found = pd.DataFrame(self.scores[method].top(query, k), columns=["id", "score"])
        listed = pd.DataFrame(rows[method]["proponents"], columns=["id", "standard_error", "z", "q"]).set_index("id")
        return found.join(listed, on="id").join(self._texts(found["id"].tolist()), on="id")

    def to_pandas(self) -> pd.DataFrame:
        """One line for every listed row: query, method, side (proponents, opponents), rank, id, score, standard_error, z, p, q, text."""
        import pandas as pd

        lines = [
            {"query": query["id"], "method": method, "side": side, "rank": rank, **row}
            for query in self.record["queries"]
            for method, sides in query["ranked"].items()
            for side, rows in sides.items()
            for rank, row in enumerate(rows, start=1)
        ]
        facts = ("query", "method", "side", "rank", "id", "score", "standard_error", "z", "p", "q", "hub_rank", "near_duplicates")
        texts = pd.DataFrame.from_dict(self.record["rows"], orient="index", columns=list(TEXTS))
        return pd.DataFrame(lines, columns=list(facts)).join(texts, on="id")

    def by_group(self, by: str = "group", *, method: str | None = None) -> pd.DataFrame:
        """Sums of scores over groups of rows, by a column of the row table (source, label, group) or by "near_duplicates".

        Method: the primary one; UsageError where it only ranks. See `headwater.rank.by_group.group_scores`.
        """
        return group_scores(self.scores[self._method(method)], StoredIndex.open(self.run), by=by).to_pandas()

    def tokens(
        self,
        query: int | str = 0,
        row_id: str | None = None,
        *,
        method: str | None = None,
        session: Session | None = None,
        data: Any = None,
        measure: Measure | None = None,
    ) -> TokenScores:
        """Which tokens of a training row, for which tokens of the output: the pair's score by position, with `to_pandas` and `plot`.

        Row: the method's first for this query; method: the primary one. `session`, `data` and `measure` are the trace's own where they were
        given as objects. Cost: encoding the run's data, loading the model, a pass over the pair. See `headwater.rank.tokens`.
        """
        name, q = self._method(method), self.queries.index(self._query(query)["id"])
        chosen = methods.get(name, **self.record["recipe"]["methods"][name])
        check_supported(chosen)
        row_id = row_id or next((found for found, _ in self.scores[name].top(q, 1)), None)
        if row_id is None:
            raise UsageError(f"{name} has no score for query {query!r}: there is no row to take apart")
        index, indexed = StoredIndex.open(self.run), IndexRecipe.parse(load(self.run).record["recipe"])
        session = session or open_session(indexed.model)
        check_index(index, session)
        asked = read_queries(_lines(self.folder / "queries.jsonl"), session.tokenizer, **encoding(indexed.data, session))[q]
        sides = {"query": asked, "row": stored_examples(index, session, [row_id], data=data)[0]}
        measure = measure or measures.get(self.record["measure"]["name"])
        rows = open_live(index, session, [chosen], data) if needs_model([chosen]) else index
        return token_scores(chosen, fitted(chosen, index, rows), rows, session=session, measure=measure, **sides)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page of this trace and return its path."""
        from headwater.report import write_report

        return write_report(self.run, trace=self.folder.name, out=None if out is None else Path(out))

    def _method(self, method: str | None) -> str:
        """The primary one where none is named."""
        if method is not None and method not in self.methods:
            raise UsageError(f"method {method!r} is not in this trace; there are: {', '.join(self.methods)}")
        return method or str(self.record["primary"])

    def _query(self, query: int | str) -> Mapping[str, Any]:
        known = self.queries if isinstance(query, str) else range(len(self.queries))
        if query not in known:
            names = ", ".join(self.queries[:5])
            raise UsageError(
                f"query {query!r} is not in this trace; it has {len(self.queries)}, counted from 0, and their ids are: {names}"
            )
        return self.record["queries"][self.queries.index(query) if isinstance(query, str) else query]

    def _texts(self, ids: Sequence[str]) -> pd.DataFrame:
        """What the index says of these rows; those removed since the trace are left out."""
        import pandas as pd

        stored = StoredIndex.open(self.run)
        live = set(stored.ids)
        here = [row_id for row_id in ids if row_id in live]
        positions = stored.positions_of(here)
        return pd.DataFrame({name: stored.column(name)[positions] for name in TEXTS}, index=pd.Index(here, name="id"))

    def __repr__(self) -> str:
        return f"Trace of {len(self.queries)} queries by {', '.join(self.methods)} over {self.record['n_train']:,} rows, in {self.folder}"

    def _repr_html_(self) -> str:
        from headwater.report.artefacts import read_audit
        from headwater.report.notebook import notebook_html

        return notebook_html(self.record, audit=read_audit(self.run), trace_name=self.folder.name)


@dataclass(frozen=True)
class Run:
    """A run folder: its index, what was traced in it, and the record that repeats it."""

    path: Path

    @cached_property
    def index(self) -> StoredIndex:
        return StoredIndex.open(self.path)

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json. Raises IntegrityError where it is missing or damaged."""
        return read_json(self.path / "run.json", way_out="Run the same `headwater index` command again: it writes what is missing.")

    def members(self) -> pd.DataFrame:
        """The further indexes of the rows: name, role, step, learning_rate, rows, and notes on where they come from."""
        import pandas as pd

        names = ("name", "role", "step", "learning_rate", "is_main", "notes")
        return pd.DataFrame([{name: getattr(record, name) for name in names} for record in read_members(self.path)], columns=list(names))

    def traces(self) -> list[Trace]:
        """Every trace of this run, by name."""
        folders = sorted(path.parent for path in (self.path / "scores").glob("*/trace.json"))
        return [read_trace(folder) for folder in folders]

    def newest(self) -> Trace:
        """The trace that was written last. Raises UsageError where there is none."""
        return read_trace(newest_trace(self.path))

    def top(self, query: int | str = 0, k: int = 10, *, method: str | None = None) -> pd.DataFrame:
        """The newest trace's `top`."""
        return self.newest().top(query, k, method=method)

    def to_pandas(self) -> pd.DataFrame:
        """The rows of the index: id, prompt, response, source, row, loss, lengths, flags."""
        import pandas as pd

        names = ("id", "prompt", "response", "source", "row", "group", "label", "loss", "n_tokens", "n_loss_tokens", "truncated", "bad")
        return pd.DataFrame({name: self.index.column(name) for name in names})

    def __repr__(self) -> str:
        return f"Run {self.path}: {len(self.index):,} rows of {self.record['session']['model']}, {self.index.layout.size:,} numbers a row"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.to_pandas().head(5).to_html(escape=True, index=False)}"


def load(run: str | Path) -> Run:
    """Open a run folder. Raises IntegrityError where there is no index in it."""
    opened = Run(Path(run))
    _ = opened.index
    return opened


def index(
    model: str | Path | Session | None = None,
    data: Any = None,
    out: str | Path | None = None,
    *,
    from_run: str | Path | None = None,
    append: bool = False,
    **options: Any,
) -> Run:
    """Index training data: `index("out/model", "train.jsonl", "run", **{"sketch.rank": 32})`.

    `model` is a folder, a hub id or a `Session`; `data` a path, a hub id, a `datasets.Dataset` or a list of dicts. `from_run` is the output
    folder of a Hugging Face Trainer: its final model where `model` is not given, and its checkpoints as members (others by
    `members__roles=["adam"]`). Options are the recipe's by dotted name, dots or double underscores (`sketch__rank=32`). An interrupted call
    goes on where it stopped. See `build_index`.
    """
    if data is None or out is None:
        raise UsageError(f"index(model, data, out) got no {'data' if data is None else 'out'}: name the rows, and the folder to write")
    if from_run is not None:
        model = model or TrainerFolder.open(from_run).final
        options["members.from_run"] = str(from_run)
    session = model if isinstance(model, Session) else None
    in_memory = None if isinstance(data, str | Path) else data
    flags: dict[str, Any] = {"model.path": None if model is None else str(model), "data.source": IN_MEMORY}
    if in_memory is None:
        flags["data.source"] = str(data)
    if session is not None:
        facts = {name: session.describe().get(name) for name in ("revision", "adapter", "dtype", "task")}
        flags |= {"model.path": session.name, "model.merge": session.facts.get("merged"), **{f"model.{k}": v for k, v in facts.items()}}
    given = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in options.items()]  # None is a value here: sketch__rank=None
    recipe = IndexRecipe.build(flags=flags, overrides=given)
    build_index(recipe, out, session=session, data=in_memory, append=append)
    return load(out)


def trace(
    run: str | Path | Run,
    *,
    prompt: str | None = None,
    response: str | None = None,
    queries: str | Path | Iterable[Mapping[str, Any]] | None = None,
    methods: str | Sequence[str] | Mapping[str, Mapping[str, Any]] = DEFAULT_METHODS,
    measure: str | Measure | None = None,
    session: Session | None = None,
    data: Any = None,
    **options: Any,
) -> Trace:
    """Trace outputs to training rows: `trace("run", prompt="...", response="...")`, or `queries=` a file or dicts.

    A query has `prompt` and `response`, optionally `alternative` (a contrast), `span` (only this part of the response), `label`, `id`.
    `methods` are names, or a mapping from names to their options. `measure` is what is explained: a built-in's name, or one of your own
    (`headwater.model.measures.custom`); by the kind of query where not given. Further options: primary, k, tokens, n_reference, seed.
    `tokens=N` takes the scores of the primary method's first N rows apart token by token; an index of data in memory needs `data` for it.
    """
    own = measure if isinstance(measure, Measure) else None
    source = str(queries) if isinstance(queries, str | Path) else None
    chosen = dict(methods) if isinstance(methods, Mapping) else [methods] if isinstance(methods, str) else list(methods)
    name = own.name if own else measure
    recipe = TraceRecipe.parse({"queries": source, "methods": chosen, "measure": name, **options})
    given = _given_queries(prompt, response, queries)
    return run_trace(run.path if isinstance(run, Run) else Path(run), recipe, given, session=session, measure=own, data=data)


def run_trace(
    run: Path,
    recipe: TraceRecipe,
    given: Sequence[Mapping[str, Any]] | None = None,
    *,
    session: Session | None = None,
    measure: Measure | None = None,
    data: Any = None,
) -> Trace:
    """Do what a recipe says: to its file of queries, or to those given. See `headwater.rank.trace.trace_queries`."""
    given = given_queries(recipe.queries) if given is None else list(given)
    session = session or open_session(IndexRecipe.parse(load(run).record["recipe"]).model)
    encoded = encoded_queries(run, given, session)
    traced = trace_queries(run, recipe, encoded, session=session, measure=measure, given=given, data=data)
    return Trace(traced.folder, traced.record)


def evaluate(
    scores: Matrix,
    *,
    bank: str | Path | Truth | None = None,
    train_labels: Column | None = None,
    query_labels: Column | None = None,
    label_column: str | None = None,
    mislabelled: str | None = None,
    against: Matrix | None = None,
    sign: Sign | None = None,
    method: str | None = None,
    **options: Any,
) -> Evaluation:
    """Hold scores of any tool against labels or a bank: `evaluate("S.csv", train_labels="t.csv", query_labels="q.csv", sign="negative")`.

    `scores` and `against` are files (npy, csv, parquet, safetensors), a run folder, `Scores` or an array [Q, N]; labels are files or
    sequences, in the order of the scores; `bank` is a folder or a `Truth`. Further options: k, hub_correct, seed. See
    `headwater.evaluate.summary.evaluate`.
    """
    tables = Tables(train_labels, query_labels, label_column, mislabelled)
    truth = bank if bank is None or isinstance(bank, Truth) else read_bank(bank)
    return evaluate_given(scores, tables, truth=truth, against=against, sign=sign, method=method, options=Options(**options))


def read_bank(path: str | Path) -> Truth:
    from headwater.truth.bank import read_bank as read

    return read(Path(path))


def encoded_queries(run: Path, queries: str | Path | Iterable[Mapping[str, Any]], session: Session) -> list[Example]:
    """Queries, a file of them or dicts, encoded as the rows of the run were."""
    indexed = IndexRecipe.parse(load(run).record["recipe"])
    return read_queries(given_queries(queries), session.tokenizer, **encoding(indexed.data, session))


def _given_queries(
    prompt: str | None, response: str | None, queries: str | Path | Iterable[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    if queries is None:
        if prompt is None or response is None:
            raise UsageError("nothing to trace: give a prompt and the response to explain, or queries (a file or a list of dicts)")
        return [{"prompt": prompt, "response": response}]
    if prompt is not None or response is not None:
        raise UsageError("got a prompt or response and queries as well; give one of the two")
    return given_queries(queries)


def given_queries(queries: str | Path | Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Queries as their user wrote them. Raises DataError for a file with a line that cannot be read."""
    if queries is None:
        raise UsageError("no queries are given: name a file of them, or give a list of dicts")
    if not isinstance(queries, str | Path):
        return [dict(query) for query in queries]
    rows = read_rows(str(queries))
    if rows.undecodable:
        bad = rows.undecodable[0]
        raise DataError(f"{bad.source} row {bad.row}: {bad.note}; every query must be readable, repair or remove it")
    return [{name: value for name, value in row.values.items() if value is not None} for row in rows.rows]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_trace(folder: Path) -> Trace:
    try:
        return Trace(folder, json.loads((folder / "trace.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{folder / 'trace.json'} is not JSON ({error}). Trace again: the same command writes the same file.") from error
