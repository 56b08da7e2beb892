"""Reading: both kinds of index answer alike; damage is named; removed rows are gone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from test_index_write import HIDDEN, LAYOUT, columns, fill, make_data, make_spec

from headwater.atomic import write_json
from headwater.index.files import commit_path, part_path, table_path, tensors_path
from headwater.index.memory import MemoryIndex
from headwater.index.read import StoredIndex
from headwater.index.tombstones import add_tombstones, read_tombstones
from headwater.types import DataError, Index, IntegrityError, LayoutMismatch

N = 10
FEATURES = ("gradient", "representation", "representation_response", "gradient_norm")


@pytest.fixture(params=["stored", "stored, rows removed", "memory", "subset"])
def index(request, tmp_path: Path) -> StoredIndex | MemoryIndex:
    """The same ten rows in four ways."""
    data, table = make_data(range(N)), columns(range(N))
    tensors = (data.gradient_ND, data.representation_NH, data.representation_response_NH, data.gradient_norm_NK)
    features = dict(zip(FEATURES, tensors, strict=True))
    if request.param == "memory":
        return MemoryIndex(table["id"], LAYOUT, "loss", features, {**table, "bad": [False] * N})
    if request.param != "stored, rows removed":
        fill(tmp_path, N)
        stored = StoredIndex.open(tmp_path)
        return stored if request.param == "stored" else stored.subset(range(N))
    return with_removed_rows(tmp_path)


def with_removed_rows(run: Path) -> StoredIndex:
    """Rows 0..10 stand among others that are removed."""
    from headwater.index.write import Writer

    writer = Writer.open(run, make_spec())
    kept = iter(range(N))
    dead = {0, 5, 6, 7, 8, 9, 10, 11, 15}  # the first, a whole shard of four, the last
    for rows in writer.begin("corpus", 16 + 3).missing():
        numbers = [100 + row if row in dead or row > 16 + 2 else next(kept) for row in rows]
        data = make_data(numbers)  # type: ignore[arg-type]
        writer.write(rows, data)
    add_tombstones(run, [columns(range(100 + row, 101 + row))["id"][0] for row in sorted(dead)], reason="not these")
    return StoredIndex.open(run)


def test_it_is_an_index_of_ten_rows(index):
    assert isinstance(index, Index)
    assert len(index) == N
    assert index.ids == tuple(columns(range(N))["id"])
    assert index.features == frozenset(FEATURES)
    assert (index.layout, index.gradient_of) == (LAYOUT, "loss")


@pytest.mark.parametrize("feature", FEATURES)
def test_blocks_and_take_give_the_rows_that_were_written(index, feature: str):
    data = make_data(range(N))
    expected = {
        "gradient": data.gradient_ND,
        "gradient_norm": data.gradient_norm_NK,
        "representation": data.representation_NH,
        "representation_response": data.representation_response_NH,
    }[feature]
    starts, blocks = zip(*index.blocks(feature), strict=True)
    assert list(starts) == np.cumsum([0, *map(len, blocks[:-1])]).tolist()
    torch.testing.assert_close(torch.cat(blocks), expected)
    for positions in ([3], [9, 0, 3, 3, 7], np.array([4, 5]), []):
        taken = index.take(feature, positions)
        assert taken.dtype == torch.float32
        torch.testing.assert_close(taken, expected[torch.as_tensor(positions, dtype=torch.long)])


def test_products_are_inner_products(index):
    queries_QD = torch.randn(3, LAYOUT.size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(index.products("gradient", queries_QD), queries_QD @ make_data(range(N)).gradient_ND.T)
    scale_N = 1 / index.norms("gradient")
    cosines_QN = index.products("gradient", torch.nn.functional.normalize(queries_QD), scale_N=scale_N)
    torch.testing.assert_close(cosines_QN, torch.cosine_similarity(queries_QD[:, None], make_data(range(N)).gradient_ND, dim=2))


def test_norms_are_of_the_stored_rows(index):
    torch.testing.assert_close(index.norms("gradient"), make_data(range(N)).gradient_ND.norm(dim=1))
    torch.testing.assert_close(index.norms("representation"), make_data(range(N)).representation_NH.norm(dim=1))


def test_columns_come_in_row_order(index):
    for name, column in columns(range(N)).items():
        if name != "label":
            assert index.column(name).tolist() == column
    assert index.column("bad").tolist() == [False] * N
    assert len(index.column("label")) == N


def test_positions_and_subsets(index):
    ids = columns(range(N))["id"]
    assert index.positions_of([ids[7], ids[2]]).tolist() == [7, 2]
    subset = index.subset([7, 2])
    assert subset.ids == (ids[7], ids[2])
    assert subset.column("n_tokens").tolist() == [17, 12]
    torch.testing.assert_close(subset.take("gradient", [1]), make_data(range(2, 3)).gradient_ND)


def test_what_is_not_there_is_named(index):
    with pytest.raises(DataError, match=r"no feature 'hessian'.*gradient"):
        index.take("hessian", [0])
    with pytest.raises(DataError, match="no feature 'hessian'"):
        list(index.blocks("hessian"))
    with pytest.raises(DataError, match=r"no column 'tags'.*prompt"):
        index.column("tags")
    with pytest.raises(DataError, match=r"1 of 2 ids are not in this index \(nobody\)"):
        index.positions_of([index.ids[0], "nobody"])
    with pytest.raises((DataError, IndexError)):
        index.take("gradient", [N])


# ------------------------------------------------------------------------------------------------- the stored kind


def test_an_index_without_representations(tmp_path: Path):
    fill(tmp_path, spec=make_spec(hidden_size=None))
    assert StoredIndex.open(tmp_path).features == {"gradient", "gradient_norm"}


def test_an_index_with_nothing_committed_is_empty(tmp_path: Path):
    from headwater.index.write import Writer

    Writer.open(tmp_path, make_spec()).begin("corpus", 10)
    index = StoredIndex.open(tmp_path)
    assert (len(index), index.ids, index.features) == (0, (), frozenset())
    assert index.missing_rows == (range(4), range(4, 8), range(8, 10))
    assert list(index.blocks("gradient")) == []
    assert index.products("gradient", torch.zeros(2, LAYOUT.size)).shape == (2, 0)
    assert index.column("loss").shape == (0,)


def test_labels_that_are_missing_are_nan(tmp_path: Path):
    fill(tmp_path)
    assert np.isnan(StoredIndex.open(tmp_path).column("label")).all()


def test_opening_reads_no_numbers(tmp_path: Path):
    fill(tmp_path)
    path = tensors_path(tmp_path, range(4, 8))
    path.write_bytes(b"\0" * path.stat().st_size)  # the size is right: `verify` would see it
    index = StoredIndex.open(tmp_path)
    torch.testing.assert_close(index.take("gradient", [0, 9]), make_data(range(0, 10, 9)).gradient_ND)
    with pytest.raises(IntegrityError, match=r"000000004-000000008\.safetensors .*headwater verify"):
        index.take("gradient", [5])


def test_no_index_at_all(tmp_path: Path):
    with pytest.raises(IntegrityError, match=r"no index in .*headwater index MODEL DATA"):
        StoredIndex.open(tmp_path)


@pytest.mark.parametrize(
    ("place", "content", "words"),
    [
        (lambda run: tensors_path(run, range(4, 8)), 100, r"safetensors: 100 bytes, expected \d+ bytes.*headwater verify"),
        (lambda run: table_path(run, range(4, 8)), 0, r"parquet: 0 bytes, expected \d+ bytes.*headwater index"),
        (lambda run: tensors_path(run, range(4, 8)), None, "no file, expected"),
        (lambda run: commit_path(run, range(4, 8)), 30, r"commits.*cannot be read as JSON.*headwater verify"),
        (lambda run: commit_path(run, range(4, 8)), b"{}", r"commits.*is not a commit \(KeyError.*headwater verify"),
        (lambda run: commit_path(run, range(4, 8)), b'{"rows": 1, "files": [], "spec": "", "n_bad": 0}', r"is not a commit"),
        (lambda run: part_path(run, range(10)), 20, r"parts.*cannot be read as JSON.*restore it"),
        (lambda run: part_path(run, range(10)), b'{"rows": [0, 10]}', r"is not the record of a part"),
        (
            lambda run: part_path(run, range(10)),
            b'{"rows": [0, 10], "fingerprint": "", "shards": [[0, 4], [5, 10]]}',
            "do not cover its rows",
        ),
        (lambda run: part_path(run, range(10)), b'{"rows": [1, 5], "fingerprint": "", "shards": [[1, 5]]}', "starts at row 1, expected 0"),
        (lambda run: run / "index/index.json", 20, r"index\.json cannot be read as JSON.*restore it"),
        (lambda run: run / "index/index.json", b'{"format": 1}', r"not the description of an index \(KeyError"),
        (lambda run: run / "index/index.json", b'{"format": 2}', "format 2, this version of headwater reads 1"),
        (lambda run: run / "index/tombstones/a.json", b'{"ids": 3}', 'has no list of "ids"'),
    ],
)
def test_damage_is_named_with_its_file_and_the_way_out(tmp_path: Path, place, content, words: str):
    fill(tmp_path)
    path = place(tmp_path)
    if content is None:
        path.unlink()
    elif isinstance(content, int):
        os.truncate(path, content)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(IntegrityError, match=words):
        StoredIndex.open(tmp_path)


def test_a_shard_of_another_layout_is_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    fill(tmp_path)
    path = tensors_path(tmp_path, range(8, 10))
    tensors = {**load_file(path), "gradient": torch.zeros(1, LAYOUT.size * 2)}  # as many bytes, in another shape
    save_file(tensors, path)
    index = StoredIndex.open(tmp_path)
    with pytest.raises(IntegrityError, match=r"gradient is .*expected .*\(2, 17\)"):
        index.take("gradient", [9])


# ------------------------------------------------------------------------------------------------------ tombstones


def test_tombstones_remove_rows_and_keep_their_bytes(tmp_path: Path):
    fill(tmp_path)
    ids = columns(range(N))["id"]
    assert add_tombstones(tmp_path, [ids[3], ids[8]], reason="planted") == 2
    assert add_tombstones(tmp_path, [ids[3], ids[4]], reason="again") == 1
    assert add_tombstones(tmp_path, [ids[3]], reason="again") == 0
    assert read_tombstones(tmp_path) == {ids[3]: "planted", ids[8]: "planted", ids[4]: "again"}
    index = StoredIndex.open(tmp_path)
    assert index.ids == tuple(id for i, id in enumerate(ids) if i not in (3, 4, 8))
    assert index.products("gradient", torch.ones(1, LAYOUT.size)).shape == (1, 7)
    with pytest.raises(DataError, match="never indexed, or removed since"):
        index.positions_of([ids[3]])


def test_unknown_ids_are_refused_and_nothing_is_removed(tmp_path: Path):
    fill(tmp_path)
    with pytest.raises(DataError, match=r"1 of 2 ids are not in .*\(nobody\): nothing was removed"):
        add_tombstones(tmp_path, [columns(range(1))["id"][0], "nobody"], reason="planted")
    assert len(StoredIndex.open(tmp_path)) == N


# ------------------------------------------------------------------------------------------------ the one in memory


@pytest.mark.parametrize(
    ("ids", "features", "table", "error", "words"),
    [
        (["a", "a"], {}, {}, DataError, "given twice"),
        (["a", "b"], {"gradient": torch.zeros(3, LAYOUT.size)}, {}, DataError, "2 ids, but {'gradient': 3}"),
        (["a", "b"], {}, {"loss": [1.0]}, DataError, "2 ids, but {'loss': 1}"),
        (["a", "b"], {"gradient": torch.zeros(2, 3)}, {}, LayoutMismatch, r"\(2, 3\), expected \(2, 17\)"),
    ],
)
def test_a_memory_index_refuses_what_does_not_fit(ids, features, table, error, words):
    with pytest.raises(error, match=words):
        MemoryIndex(ids, LAYOUT, "measure", features, table)


def test_bad_rows_in_memory_are_never_scored():
    rows = torch.ones(3, LAYOUT.size)
    rows[1, 0] = torch.inf
    index = MemoryIndex(["a", "b", "c"], LAYOUT, "loss", {"gradient": rows}, {"bad": [False, False, True]})
    assert torch.isnan(index.products("gradient", torch.ones(1, LAYOUT.size)))[0].tolist() == [False, True, True]


def test_json_records_are_readable_without_our_code(tmp_path: Path):
    write_json(tmp_path / "a.json", {"hidden": HIDDEN})
    assert (tmp_path / "a.json").read_text() == '{\n "hidden": 7\n}\n'
