"""Exports: every number of a trace, in files that other tools read, and lists of rows that mean what they say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from headwater.atomic import write_json
from headwater.index.spec import IndexSpec
from headwater.index.write import ShardData, Writer
from headwater.rank.export import Format, export, newest_trace, read_scores, trace_folder
from headwater.types import Block, IntegrityError, Layout, UsageError

IDS = ["a", "b", "c", "d"]
SCORES = {"grad_dot": [[0.5, -0.5, np.nan, 0.1], [-1.0, 2.0, 0.3, -0.2]], "lexical": [[1.0, 2.0, -3.0, 4.0], [-4.0, -3.0, -2.0, -1.0]]}
UNITS = {"grad_dot": "nats", "lexical": None}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    layout = Layout((Block("w", (1, 1), (1, 1)),))
    writer = Writer.open(tmp_path, IndexSpec(layout, shard_rows=4))
    texts = ['plain, "quoted"', "two\nlines", "ünï ☃", ""]
    columns = {
        "id": IDS,
        "prompt": texts,
        "response": texts,
        "group": IDS,
        "source": ["s.jsonl"] * 4,
        "row": [5, 6, 7, 8],
        "label": [None] * 4,
        "loss": [1.0] * 4,
        "n_tokens": [2] * 4,
        "n_loss_tokens": [1] * 4,
        "truncated": [False] * 4,
    }
    part = writer.begin("corpus", 4)
    writer.write(part.missing()[0], ShardData(torch.ones(4, 1), torch.ones(4, 1), columns))
    write_trace(tmp_path / "scores" / "trace-1")
    return tmp_path


def write_trace(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, values in SCORES.items():
        scores = torch.tensor(values, dtype=torch.float32)
        safetensors.torch.save_file({"scores": scores}, folder / f"{name}.safetensors")
    write_json(folder / "ids.json", {"query_ids": ["q0", "q1"], "train_ids": IDS})
    methods = [{"name": name, "unit": UNITS[name], "provenance": {"n_rows": 4}} for name in SCORES]
    write_json(folder / "trace.json", {"methods": methods})


def table(run: Path, format: Format, **options: object) -> pd.DataFrame:
    path = run / f"out.{format}"
    n = export(run, run / "scores" / "trace-1", path, format=format, **options)  # pyright: ignore[reportArgumentType]
    readers = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda p: pd.read_json(p, lines=True)}
    found = readers[format](path)
    assert len(found) == n
    return found


@pytest.mark.parametrize("format", get_args(Format))
def test_every_score_with_its_row_and_unit(format: Format, run: Path) -> None:
    found = table(run, format)
    assert len(found) == 2 * 2 * 4
    for line in found.itertuples():
        expected = SCORES[str(line.method)][int(str(line.query)[1])][IDS.index(str(line.id))]
        assert line.score == pytest.approx(expected, nan_ok=True)
        assert line.row == 5 + IDS.index(str(line.id))
        assert line.unit == UNITS[str(line.method)] or pd.isna(line.unit)
    assert set(table(run, format, method="lexical")["method"]) == {"lexical"}


@pytest.mark.parametrize("format", get_args(Format))
def test_an_exclude_list_has_each_row_once_with_its_best_rank(format: Format, run: Path) -> None:
    found = table(run, format, method="grad_dot", exclude=2)
    assert found[["id", "rank", "query", "row"]].to_numpy().tolist() == [
        ["a", 1, "q0", 5],
        ["b", 1, "q1", 6],
        ["c", 2, "q1", 7],
        ["d", 2, "q0", 8],
    ]


def test_an_exclude_list_leaves_out_rows_that_push_away(run: Path) -> None:
    """A negative score is no reason to remove a row, whatever its unit."""
    assert table(run, "csv", method="grad_dot", exclude=4)["id"].tolist() == ["a", "b", "c", "d"]
    assert (table(run, "csv", method="grad_dot", exclude=4)["score"] > 0).all()
    lexical = table(run, "csv", method="lexical", exclude=2)
    assert lexical[["id", "query", "score"]].to_numpy().tolist() == [["d", "q0", 4.0], ["b", "q0", 2.0]]


def test_an_exclude_list_filters_a_data_set(run: Path) -> None:
    import datasets

    rows = set(table(run, "csv", method="grad_dot", exclude=1)["row"])
    data = datasets.Dataset.from_list([{"n": i} for i in range(10)])
    assert data.filter(lambda _, i: i not in rows, with_indices=True)["n"][:] == [i for i in range(10) if i not in (5, 6)]


def test_wrong_options(run: Path) -> None:
    trace, out = run / "scores" / "trace-1", run / "out.csv"
    for options, words in (
        ({"method": "x"}, "grad_dot"),
        ({"exclude": 3}, "--method"),
        ({"exclude": 0, "method": "lexical"}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            export(run, trace, out, format="csv", **options)  # pyright: ignore[reportArgumentType]
    assert not out.exists()


@pytest.mark.parametrize("name", ["trace.json", "ids.json", "grad_dot.safetensors"])
def test_a_damaged_or_missing_file(name: str, run: Path) -> None:
    path = run / "scores" / "trace-1" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match="Trace again"):
        read_scores(path.parent)
    path.unlink()
    with pytest.raises(IntegrityError, match="Trace again"):
        read_scores(path.parent)


def test_which_trace(run: Path) -> None:
    write_trace(run / "scores" / "trace-0")
    old = run / "scores" / "trace-1" / "trace.json"
    os.utime(old, ns=(1, 1))
    assert newest_trace(run).name == "trace-0"
    assert trace_folder(run, "trace-1").name == "trace-1"
    with pytest.raises(UsageError, match="trace-0, trace-1"):
        trace_folder(run, "trace-2")
    with pytest.raises(IntegrityError, match="no index in"):
        newest_trace(run / "elsewhere")
    shutil.rmtree(run / "scores")
    with pytest.raises(UsageError, match="nothing was traced"):
        newest_trace(run)


def test_scores_by_group(run: Path, tmp_path: Path) -> None:
    """Of what predicts a change; what only ranks is left out, or refused where it is asked for."""
    path = tmp_path / "groups.csv"
    assert export(run, run / "scores" / "trace-1", path, format="csv", by="source") == 2
    table = pd.read_csv(path)
    assert table["method"].tolist() == ["grad_dot"] * 2
    assert table.set_index("query")["score"].to_dict() == pytest.approx({"q0": 0.1, "q1": 1.1})
    assert table["n_rows"].tolist() == [4, 4]
    assert table["n_unscored"].tolist() == [0, 0]
    assert table["standard_error"].isna().all()
    with pytest.raises(UsageError, match="lexical only ranks"):
        export(run, run / "scores" / "trace-1", path, format="csv", by="source", method="lexical")
    with pytest.raises(UsageError, match="give one of --exclude and --by"):
        export(run, run / "scores" / "trace-1", path, format="csv", by="source", method="grad_dot", exclude=1)


def test_scores_by_group_of_a_trace_that_only_ranks(run: Path, tmp_path: Path) -> None:
    folder = run / "scores" / "trace-1"
    write_json(folder / "trace.json", {"methods": [{"name": "lexical", "unit": None, "provenance": {}}]})
    with pytest.raises(UsageError, match="no method of this trace predicts a change"):
        export(run, folder, tmp_path / "groups.csv", format="csv", by="source")
