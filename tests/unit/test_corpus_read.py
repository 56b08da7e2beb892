import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.corpus import read_rows
from headwater.types import DataError, UsageError

ROWS = [{"prompt": f"question {i}", "response": "2020-01-0" + str(i)} for i in range(1, 6)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def values(raw):
    return [dict(row.values) for row in raw.rows]


@pytest.fixture(
    params=["jsonl", "json", "json lines", "csv", "tsv", "parquet", "saved", "saved dict", "Dataset", "DatasetDict", "list", "folder"]
)
def data(request, tmp_path):
    """The same five rows in every kind of input."""
    table = datasets.Dataset.from_list(ROWS)
    makers = {
        "jsonl": lambda: write_jsonl(tmp_path / "train.jsonl", ROWS),
        "json lines": lambda: write_jsonl(tmp_path / "train.json", ROWS),
        "json": lambda: _written(tmp_path / "train.json", json.dumps(ROWS, indent=1)),
        "csv": lambda: _written(
            tmp_path / "train.csv", "prompt,response\r\n" + "".join(f"{r['prompt']},{r['response']}\r\n" for r in ROWS)
        ),
        "tsv": lambda: _written(tmp_path / "train.tsv", "prompt\tresponse\n" + "".join(f"{r['prompt']}\t{r['response']}\n" for r in ROWS)),
        "parquet": lambda: (pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet"), tmp_path / "train.parquet")[1],
        "saved": lambda: (table.save_to_disk(str(tmp_path / "saved")), str(tmp_path / "saved"))[1],
        "saved dict": lambda: (datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "saved")), tmp_path / "saved")[1],
        "Dataset": lambda: table,
        "DatasetDict": lambda: datasets.DatasetDict(train=table),
        "list": lambda: ROWS,
        "folder": lambda: (write_jsonl(tmp_path / "a.jsonl", ROWS[:2]), write_jsonl(tmp_path / "b.jsonl", ROWS[2:]), tmp_path)[2],
    }
    return makers[request.param]()


def _written(path, text):
    path.write_bytes(text.encode())
    return path


def test_every_kind_of_input_gives_the_same_rows_as_text(data):
    assert values(read_rows(data)) == ROWS


def test_limit_stops_early(data):
    assert values(read_rows(data, limit=3)) == ROWS[:3]


def test_rows_of_a_folder_know_their_file_and_number(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[2:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "notes.md").write_text("not data")
    places = [(row.source, row.row) for row in read_rows(tmp_path).rows]
    assert places == [("a.jsonl", 0), ("a.jsonl", 1), ("b.jsonl", 0), ("b.jsonl", 1), ("b.jsonl", 2)]


def test_splits_are_chosen_by_name_and_named_when_they_are_not(tmp_path):
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    both.save_to_disk(str(tmp_path / "saved"))
    assert len(read_rows(tmp_path / "saved", split="test")) == 1
    for split in (None, "validation"):
        with pytest.raises(UsageError, match=r"\['train', 'test'\]"):
            read_rows(tmp_path / "saved", split=split)
    with pytest.raises(UsageError, match="no splits"):
        read_rows(ROWS, split="train")


def test_a_name_that_is_no_path_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, split=None):
        asked.append((name, split))
        table = datasets.Dataset.from_list(ROWS)
        return table if split else datasets.DatasetDict(train=table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert values(read_rows("someone/somedata")) == values(read_rows("someone/somedata", split="train")) == ROWS
    assert asked == [("someone/somedata", None), ("someone/somedata", "train")]


def test_a_hub_id_that_cannot_be_loaded_says_what_to_check(monkeypatch):
    def load_dataset(name, split=None):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"someone/somedata.*no route.*network"):
        read_rows("someone/somedata")


def test_csv_cells_are_text_and_may_span_lines(tmp_path):
    path = _written(tmp_path / "t.csv", '\ufeffprompt,response\n"two\nlines","a ""quoted"", NA"\n007,NA\n2020-01-01,\n')
    assert values(read_rows(path)) == [
        {"prompt": "two\nlines", "response": 'a "quoted", NA'},
        {"prompt": "007", "response": "NA"},
        {"prompt": "2020-01-01", "response": ""},
    ]


def test_jsonl_splits_at_newlines_only(tmp_path):
    rows = [{"text": "a\u2028b\x85c"}, {"text": "d"}]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert values(read_rows(path)) == rows


def test_a_bad_line_among_good_ones_is_listed_with_its_place(tmp_path):
    lines = [json.dumps(row).encode() for row in ROWS]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join([*lines, b'{"prompt": "\xff"}', b'{"prompt": ', b"[1]", *lines]))
    raw = read_rows(path)
    assert [(bad.source, bad.row) for bad in raw.undecodable] == [("t.jsonl", 5), ("t.jsonl", 6), ("t.jsonl", 7)]
    assert raw.undecodable[0].note.startswith("line 6: invalid UTF-8")
    assert raw.undecodable[1].note.startswith("line 7: invalid JSON")
    assert raw.undecodable[2].note.startswith("line 8: a JSON list")
    assert [row.row for row in raw.rows] == [0, 1, 2, 3, 4, 8, 9, 10, 11, 12]
    assert raw.n_read == 13


def test_a_csv_row_of_another_width_is_listed_in_its_place(tmp_path):
    path = _written(tmp_path / "t.csv", "a,b\n1,2\n3\n4,5\n6,7,8\n9,10\n")
    raw = read_rows(path)
    assert [row.row for row in raw.rows] == [0, 2, 4]
    assert [(bad.row, bad.note) for bad in raw.undecodable] == [(1, "line 3: 1 fields, expected 2"), (3, "line 5: 3 fields, expected 2")]


def test_parquet_text_that_is_not_utf8_is_listed(tmp_path):
    good = pa.array([b"one", b"two", b"three"], pa.binary())
    bad = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary())
    as_text = pa.Array.from_buffers(pa.string(), 3, bad.buffers())  # no check, as a foreign writer might
    pq.write_table(pa.table({"prompt": good.cast(pa.string()), "response": as_text}), tmp_path / "t.parquet")
    raw = read_rows(tmp_path / "t.parquet")
    assert [row.row for row in raw.rows] == [0, 2]
    assert [(x.row, x.reason) for x in raw.undecodable] == [(1, "undecodable")]


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", PNG, "PNG image.*expected .jsonl"),
        ("t.csv", PNG, "PNG image.*expected .csv"),
        ("t.parquet", PNG, "not readable as Parquet"),
        ("t.jsonl", '{"text": "a"}\n'.encode("utf-16"), "not UTF-8"),
        ("t.jsonl", b"just\nsome\nprose\n", "3 of 3 rows cannot be read.*line 1: invalid JSON"),
        ("t.jsonl", b'{"text": "a"}\nx\ny\n', "2 of 3 rows cannot be read, first row 1: line 2: invalid JSON"),
        ("t.jsonl", b"[" * 100_000, "1 of 1 rows cannot be read.*line 1"),
        ("t.jsonl", b"\n\n", "no rows"),
        ("t.jsonl", b"", "no rows"),
        ("t.json", b'[{"text": "a"},', "not a JSON array"),
        ("t.csv", b"text\ncaf\xe9\n", "UTF8"),
        ("t.csv", b"text,text\na,b\n", "line 1.*'text'.*twice"),
        ("t.csv", b"caf\xe9,b\na,b\n", "line 1"),
        ("t.csv", b"", "not readable as .csv"),
        ("t.csv", b"text\n", "no rows"),
    ],
)
def test_a_file_of_the_wrong_kind_gives_one_error_with_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){name}.*{message}"):
        read_rows(tmp_path / name)


def test_a_truncated_parquet_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.parquet.*truncated"):
        read_rows(path)


def test_an_incomplete_saved_dataset_is_refused(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="incomplete"):
        read_rows(tmp_path / "saved")


@pytest.mark.parametrize("data", ["no/such/file.jsonl", "nothing.csv", "/tmp/none", 7, None, {"prompt": "a"}])
def test_what_is_no_data_at_all_is_a_usage_error(data):
    with pytest.raises(UsageError):
        read_rows(data)


def test_other_refusals(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"\.xlsx.*\.jsonl"):
        read_rows(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="folder without"):
        read_rows(tmp_path)
    with pytest.raises(UsageError, match="limit 0"):
        read_rows(ROWS, limit=0)


def test_a_row_of_a_megabyte_is_read_whole(tmp_path):
    text = "wide, \U0001f600 " * 100_000
    _written(tmp_path / "t.csv", f'text,n\n"{text}",1\n')
    write_jsonl(tmp_path / "t.jsonl", [{"text": text}])
    assert read_rows(tmp_path / "t.csv").rows[0].values["text"] == read_rows(tmp_path / "t.jsonl").rows[0].values["text"] == text
