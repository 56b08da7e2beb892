"""Scores out of a run, in files that other tools read: every score, or the ids to leave out of the next training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch

from headwater.atomic import write_atomically
from headwater.index.read import StoredIndex
from headwater.index.spec import read_spec
from headwater.rank.by_group import adds_up, group_scores
from headwater.types import IntegrityError, Scores, UsageError

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "parquet", "jsonl"]


def read_scores(folder: Path) -> dict[str, Scores]:
    """The score matrices of one trace by method. Raises IntegrityError where a file is missing or damaged."""
    try:
        record = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        return {
            method["name"]: Scores(
                values_QN=safetensors.torch.load((folder / f"{method['name']}.safetensors").read_bytes())["scores"].numpy(),
                query_ids=tuple(ids["query_ids"]),
                train_ids=tuple(ids["train_ids"]),
                method=method["name"],
                unit=method["unit"],
                provenance=method["provenance"],
            )
            for method in record["methods"]
        }
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise IntegrityError(
            f"{folder}: the scores cannot be read ({error}). Trace again: the same command writes the same files."
        ) from error


def export(
    run: Path,
    folder: Path,
    path: Path,
    *,
    format: Format,
    method: str | None = None,
    exclude: int | None = None,
    by: str | None = None,
) -> int:
    """Write scores (all methods, or one); with `exclude` the rows that stand among the first so many of any query; with `by` group scores.

    Scores: query, id, source, row, method, score, unit. Exclude list: id, source, row, best rank and the query it was found for, ready for
    `dataset.filter(lambda _, i: i not in rows, with_indices=True)` or a filter on ids. Group scores: see `by_group.group_scores`; without a
    method, those of every method of the trace that predicts a change. Returns the number of lines written.
    """
    scores = read_scores(folder)
    if method is not None and method not in scores:
        raise UsageError(f"method {method!r} is not in this trace; there are: {', '.join(scores)}")
    if exclude is not None and method is None:
        raise UsageError("an exclude list is of one method: name it with --method")
    if exclude is not None and exclude < 1:
        raise UsageError(f"exclude is {exclude}, expected at least 1: how many of a query's first rows to leave out")
    if exclude is not None and by is not None:
        raise UsageError("an exclude list names rows, group scores do not: give one of --exclude and --by")
    chosen = list(scores.values()) if method is None else [scores[method]]
    if by is not None:
        frame = _by_group(run, chosen if method is not None else [one for one in chosen if adds_up(one)], by)
    else:
        where = _places(run)
        frame = _excluded(chosen[0], exclude, where) if exclude is not None else _all(chosen, where)
    write_atomically(path, lambda file: _write(frame, file, format))
    return len(frame)


def _by_group(run: Path, scores: list[Scores], by: str) -> pd.DataFrame:
    """The error of a sum is not among the files of a trace: it stays empty."""
    import pandas as pd

    if not scores:
        raise UsageError("no method of this trace predicts a change, and what only ranks has no sums: trace with grad_dot or an influence")
    index = StoredIndex.open(run)
    return pd.concat([group_scores(one, index, by=by).to_pandas() for one in scores], ignore_index=True)


def _places(run: Path) -> pd.DataFrame:
    """id -> source, row."""
    import pandas as pd

    index = StoredIndex.open(run)
    return pd.DataFrame({"id": list(index.ids), "source": index.column("source"), "row": index.column("row")}).set_index("id")


def _all(scores: list[Scores], where: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    parts = [one.to_pandas().assign(unit=one.unit) for one in scores]
    joined = pd.concat(parts, ignore_index=True).join(where, on="id")
    return joined[["query", "id", "source", "row", "method", "score", "unit"]]


def _excluded(scores: Scores, first: int, where: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    found = [
        {"id": row_id, "rank": rank, "query": query, "score": score}
        for query in scores.query_ids
        for rank, (row_id, score) in enumerate(scores.top(query, first), start=1)
        if score > 0  # whatever the unit: an opponent's removal would strengthen the output
    ]
    frame = pd.DataFrame(found, columns=["id", "rank", "query", "score"]).sort_values(["rank", "id"], kind="stable")
    frame = frame.drop_duplicates("id").join(where, on="id").assign(method=scores.method)
    return frame[["id", "source", "row", "rank", "query", "score", "method"]]


def _write(frame: pd.DataFrame, file: Any, format: Format) -> None:
    if format == "csv":
        file.write(frame.to_csv(index=False).encode())
    elif format == "jsonl":
        file.write(frame.to_json(orient="records", lines=True, force_ascii=False).encode())
    else:
        frame.to_parquet(file, index=False)


def newest_trace(run: Path) -> Path:
    """The folder of the last trace. Raises IntegrityError where `run` is no run, UsageError where nothing was traced in it yet."""
    read_spec(run)
    traces = sorted((run / "scores").glob("*/trace.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not traces:
        raise UsageError(f"{run}: nothing was traced yet. Run `headwater trace {run} --prompt ... --response ...` first.")
    return traces[-1].parent


def trace_folder(run: Path, name: str) -> Path:
    """The folder of a trace by name. Raises UsageError with the names there are."""
    folder = run / "scores" / name
    if not (folder / "trace.json").exists():
        known = sorted(path.parent.name for path in (run / "scores").glob("*/trace.json"))
        raise UsageError(f"{run} has no trace {name!r}; there are: {', '.join(known) or 'none'}")
    return folder
