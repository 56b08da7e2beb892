"""Score matrices of any tool: the same numbers and ids whatever the file, and a clear error for what is no matrix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tests.unit.test_export import write_trace

from headwater.evaluate.labels import read_flags, read_labels
from headwater.evaluate.read import as_scores, read_scores
from headwater.rank import export
from headwater.types import DataError, Scores, UsageError

VALUES = np.array([[0.5, -1.5, 2.0], [3.25, 0.0, -0.75]])
LINES = ["0.5,-1.5,2.0", "3.25,0.0,-0.75"]


def write_text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def csv_file(path: Path, *, header: str | None, index: tuple[str, str] | None) -> Path:
    lines = LINES if index is None else [f"{name},{line}" for name, line in zip(index, LINES, strict=True)]
    return write_text(path, *([] if header is None else [header]), *lines)


@pytest.mark.parametrize(
    ("header", "index", "train_ids", "query_ids"),
    [
        ("0,1,2", ("0", "1"), "012", "01"),  # the paper's: the index column has no name
        (",0,1,2", ("0", "1"), "012", "01"),  # pandas'
        ("query,a,b,c", ("q", "r"), "abc", "qr"),
        ("a,b,c", ("q", "r"), "abc", "qr"),
        ("a,b,c", None, "abc", "01"),
        ("0,1,2", None, "012", "01"),
        ("1,2,3", None, "012", "01"),
        (None, None, "012", "01"),
        (None, ("0", "1"), "012", "01"),
        (None, ("q", "r"), "012", "qr"),
    ],
)
def test_a_csv_with_and_without_header_and_index(
    header: str | None, index: tuple[str, str] | None, train_ids: str, query_ids: str, tmp_path: Path
) -> None:
    scores = read_scores(csv_file(tmp_path / "s.csv", header=header, index=index))
    np.testing.assert_array_equal(scores.values_QN, VALUES)
    assert scores.train_ids == tuple(train_ids)
    assert scores.query_ids == tuple(query_ids)


def test_one_query_is_a_matrix_of_one_row(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_scores(write_text(tmp_path / "s.csv", LINES[0])).values_QN, VALUES[:1])
    np.testing.assert_array_equal(read_scores(write_text(tmp_path / "h.csv", "0,1,2", f"0,{LINES[0]}")).values_QN, VALUES[:1])


def test_an_empty_cell_is_a_pair_without_a_score(tmp_path: Path) -> None:
    values = read_scores(write_text(tmp_path / "s.csv", "a,b,c", "1,,2", "nan,4,5")).values_QN
    np.testing.assert_array_equal(values, [[1, np.nan, 2], [np.nan, 4, 5]])


def test_every_kind_of_file_has_the_same_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", VALUES.astype(np.float32))
    save_file({"all_modules": torch.tensor(VALUES, dtype=torch.bfloat16)}, tmp_path / "s.safetensors")
    save_file({"other": torch.zeros(1), "scores": torch.tensor(VALUES)}, tmp_path / "named.safetensors")
    frame = pd.DataFrame(VALUES, columns=list("abc"), index=["q", "r"])
    frame.to_parquet(tmp_path / "s.parquet")
    frame.reset_index(names="query").to_parquet(tmp_path / "column.parquet", index=False)
    frame.reset_index(drop=True).to_csv(tmp_path / "s.tsv", sep="\t")
    for name in ("s.npy", "s.safetensors", "named.safetensors", "s.parquet", "column.parquet", "s.tsv"):
        np.testing.assert_array_equal(read_scores(tmp_path / name).values_QN, VALUES, err_msg=name)
    for name in ("s.parquet", "column.parquet"):
        assert read_scores(tmp_path / name).query_ids == ("q", "r")
        assert read_scores(tmp_path / name).train_ids == ("a", "b", "c")


def test_negative_means_that_low_numbers_are_proponents(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", VALUES)
    scores = read_scores(tmp_path / "s.npy", sign="negative")
    np.testing.assert_array_equal(scores.values_QN, -VALUES)
    assert scores.provenance["sign"] == "negative"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a trace leaves, as far as it is read here."""
    folder = tmp_path / "run" / "scores" / "one"
    folder.mkdir(parents=True)
    for name, factor in (("grad_cos", 1), ("lexical", 10)):
        save_file({"scores": torch.tensor(VALUES * factor, dtype=torch.float32)}, folder / f"{name}.safetensors")
    (folder / "ids.json").write_text(json.dumps({"query_ids": ["q", "r"], "train_ids": ["a", "b", "c"]}))
    methods = [{"name": "lexical", "unit": None}, {"name": "grad_cos", "unit": "nats"}]
    (folder / "trace.json").write_text(json.dumps({"methods": methods, "primary": "grad_cos"}))
    return tmp_path / "run"


def test_a_run_of_ours_by_folder_trace_or_file(run: Path) -> None:
    for path in (run, run / "scores" / "one", run / "scores" / "one" / "grad_cos.safetensors"):
        scores = read_scores(path)
        np.testing.assert_array_equal(scores.values_QN, VALUES)
        assert (scores.train_ids, scores.query_ids) == (("a", "b", "c"), ("q", "r"))
    assert read_scores(run).unit == "nats"
    np.testing.assert_array_equal(read_scores(run, method="lexical").values_QN, 10 * VALUES)
    with pytest.raises(UsageError, match="there are: lexical, grad_cos"):
        read_scores(run, method="ekfac")
    with pytest.raises(UsageError, match="leave --sign out"):
        read_scores(run, sign="negative")
    (run / "scores" / "one" / "ids.json").write_text('{"query_ids": ["q"], "train_ids": ["a", "b", "c"]}')
    with pytest.raises(DataError, match="do not fit together"):
        read_scores(run)
    with pytest.raises(DataError, match="names 1 queries and 3 rows"):
        read_scores(run / "scores" / "one" / "grad_cos.safetensors")


def test_a_folder_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trace in it"):
        read_scores(tmp_path)


def test_a_trace_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    """The files are read here without the code that wrote them: both must stay the same."""
    write_trace(tmp_path / "one")
    for method, ours in export.read_scores(tmp_path / "one").items():
        scores = read_scores(tmp_path / "one", method=method)
        np.testing.assert_array_equal(scores.values_QN, ours.values_QN)
        assert (scores.train_ids, scores.query_ids, scores.unit) == (ours.train_ids, ours.query_ids, ours.unit)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s.csv", b"", "empty"),
        ("s.csv", b"\n\n", "no line"),
        ("s.csv", b"0,1,2\n", "cannot be read as csv"),  # a header and no query
        ("s.csv", b"0,1,2\n0,1,2,3\n1,4,5\n", "lines of 3 and of 4 fields"),
        ("s.csv", b"a,b\n1,2\n3,many\n", "'many' in column 'b'"),
        ("s.csv", b"\xff\xfe\x00\x01", "cannot be read as csv"),
        ("s.csv", b"1,inf\n2,3\n", "1 scores are infinite"),
        ("s.npy", b"not an array", "cannot be read as npy"),
        ("s.safetensors", b"nothing", "cannot be read as safetensors"),
        ("s.parquet", b"PAR1", "cannot be read as parquet"),
        ("s.npy", b"", "empty"),
    ],
)
def test_what_is_no_matrix(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_scores(tmp_path / name)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 3), (3, 0)])
def test_a_wrong_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros(shape))
    with pytest.raises(DataError, match="expected"):
        read_scores(tmp_path / "s.npy")


def test_objects_are_never_read(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(DataError, match="could run code"):
        read_scores(tmp_path / "s.npy")


def test_ids_that_stand_there_twice(tmp_path: Path) -> None:
    pd.DataFrame(VALUES, columns=list("abc"), index=["q", "q"]).to_parquet(tmp_path / "s.parquet")
    with pytest.raises(DataError, match="'q' stands there more than once"):
        read_scores(tmp_path / "s.parquet")


def test_a_path_or_kind_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"one of \.npy"):
        read_scores(write_text(tmp_path / "s.txt", "1"))
    with pytest.raises(UsageError, match="Leave --method out"):
        read_scores(write_text(tmp_path / "s.csv", "1,2"), method="grad_dot")
    save_file({"one": torch.zeros(2, 2), "two": torch.zeros(2, 2)}, tmp_path / "s.safetensors")
    with pytest.raises(DataError, match="tensors one, two"):
        read_scores(tmp_path / "s.safetensors")


def test_objects_are_scores_too() -> None:
    ours = as_scores(VALUES, sign="negative")
    np.testing.assert_array_equal(ours.values_QN, -VALUES)
    scores = Scores(VALUES, ("q", "r"), ("a", "b", "c"), "m", None)
    assert as_scores(scores) is scores
    with pytest.raises(UsageError, match="leave the sign out"):
        as_scores(scores, sign="negative")


# ---------------------------------------------------------------------------------------------------------- labels


def test_labels_are_the_same_text_in_every_kind_of_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"kind": [3, 1, 3], "text": ["01", "None", "é"]})
    frame.to_csv(tmp_path / "l.csv", index=False)
    frame.to_parquet(tmp_path / "l.parquet")
    frame.to_json(tmp_path / "l.jsonl", orient="records", lines=True)
    frame.astype({"kind": float}).to_parquet(tmp_path / "f.parquet")
    for name in ("l.csv", "l.parquet", "l.jsonl"):
        assert read_labels(tmp_path / name, "kind", n=3).tolist() == ["3", "1", "3"]
        assert read_labels(tmp_path / name, "text").tolist() == ["01", "None", "é"]
    assert read_labels(tmp_path / "f.parquet", "kind").tolist() == ["3", "1", "3"]


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    path = write_text(tmp_path / "l.csv", "label,other", "a,1", "b,2", ",3")
    with pytest.raises(UsageError, match="no column 'kind'; there are: label, other"):
        read_labels(path, "kind")
    with pytest.raises(DataError, match="3 labels, but the scores are of 2 queries"):
        read_labels(path, "other", n=2, of="queries")
    with pytest.raises(DataError, match="1 of 3 rows have no 'label', the first is row 2"):
        read_labels(path)
    with pytest.raises(DataError, match="no rows in it"):
        read_labels(write_text(tmp_path / "e.csv", "label"))
    for name, content in (("b.parquet", b"x"), ("b.csv", b""), ("b.jsonl", b"{"), ("u.csv", b"label\n\xff\xfe\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as"):
            read_labels(tmp_path / name)
    with pytest.raises(UsageError, match="no such file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"one of \.csv"):
        read_labels(write_text(tmp_path / "l.txt", "a"))


def test_flags(tmp_path: Path) -> None:
    write_text(tmp_path / "f.csv", "wrong,label", "True,a", "0,b", "no,a")
    assert read_flags(tmp_path / "f.csv", "wrong", n=3).tolist() == [True, False, False]
    with pytest.raises(DataError, match="'a' in column 'label'"):
        read_flags(tmp_path / "f.csv", "label", n=3)
