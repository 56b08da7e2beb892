"""Writing: quantisation, resume, append, refusals, killed writers, two writers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater import atomic
from headwater.index import codec
from headwater.index.files import commit_path, table_path, tensors_path
from headwater.index.read import StoredIndex
from headwater.index.spec import IndexSpec
from headwater.index.verify import verify
from headwater.index.write import ShardData, Writer
from headwater.types import Block, DataError, IntegrityError, Layout, LayoutMismatch, UsageError

LAYOUT = Layout((Block("q", (6, 9), (3, 4)), Block("bias", (5,), (5,))))
HIDDEN = 7


def make_spec(**changes) -> IndexSpec:
    return IndexSpec(LAYOUT, **{"hidden_size": HIDDEN, "shard_rows": 4, "facts": {"model": "m", "task": "causal"}, **changes})


def make_data(rows: range, *, prefix: str = "a", hidden: int | None = HIDDEN) -> ShardData:
    """Rows that depend on their absolute number alone."""
    numbers = [torch.randn(LAYOUT.size + 2 + 2 * HIDDEN, generator=torch.Generator().manual_seed(row)) for row in rows]
    all_ = torch.stack(numbers)
    gradient, norm, *hiddens = all_.split([LAYOUT.size, 2, HIDDEN, HIDDEN], 1)
    return ShardData(gradient, norm.abs(), columns(rows, prefix), *(hiddens if hidden else (None, None)))


def columns(rows: range, prefix: str = "a") -> dict:
    return {
        "id": [f"{prefix}{row:031x}" for row in rows],
        "prompt": [f"prompt {row} \u202e <script>" for row in rows],
        "response": ["r"] * len(rows),
        "group": ["g"] * len(rows),
        "source": ["train.jsonl"] * len(rows),
        "row": list(rows),
        "label": [None] * len(rows),
        "loss": [float(row) for row in rows],
        "n_tokens": [10 + row for row in rows],
        "n_loss_tokens": [3] * len(rows),
        "truncated": [False] * len(rows),
    }


def fill(run: Path, n_rows: int = 10, *, spec: IndexSpec | None = None, fingerprint: str = "corpus", prefix: str = "a", **options) -> None:
    spec = spec or make_spec()
    writer = Writer.open(run, spec)
    for rows in writer.begin(fingerprint, n_rows, **options).missing():
        writer.write(rows, make_data(rows, prefix=prefix, hidden=spec.hidden_size))


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------------------------------- quantisation


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_stored_numbers_are_within_half_a_step(tmp_path: Path, dtype: str, relative: float):
    fill(tmp_path, spec=make_spec(dtype=dtype))
    given_ND = make_data(range(10)).gradient_ND
    error_ND = (StoredIndex.open(tmp_path).take("gradient", range(10)) - given_ND).abs()
    largest = {name: block.abs().flatten(1).amax(1) for name, block in LAYOUT.split(given_ND).items()}
    per_block = {b.name: largest[b.name].view(-1, *[1] * len(b.stored)).expand(-1, *b.stored) for b in LAYOUT.blocks}
    step_ND = LAYOUT.join(per_block) if dtype == "int8" else given_ND.abs()
    assert (error_ND <= relative * step_ND * (1 + 1e-5)).all()
    assert dtype == "float32" or error_ND.max() > 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3.0000000054977558e38, 3.0000000054977558e38, width=32), min_size=17, max_size=17))
def test_int8_never_leaves_its_range_and_is_idempotent(row):
    rows_ND = torch.tensor([row])
    once = codec.encode(rows_ND, "int8", LAYOUT)
    assert once.values_ND.abs().max() <= 127
    twice = codec.encode(codec.decode(once, LAYOUT), "int8", LAYOUT)
    tiny = torch.cat([torch.full((1, b.size), float(s < 1e-36)) for b, s in zip(LAYOUT.blocks, once.scale_NK[0], strict=True)], 1).bool()
    assert ((once.values_ND == twice.values_ND) | tiny).all()  # below that the scale itself is denormal


def test_a_row_that_is_not_finite_is_stored_as_bad_and_keeps_its_nans(tmp_path: Path):
    for dtype in ("float32", "bfloat16", "int8"):
        run = tmp_path / dtype
        writer = Writer.open(run, make_spec(dtype=dtype))
        (rows,) = writer.begin("corpus", 4).missing()
        data = make_data(rows)
        data.gradient_ND[1, 3], data.gradient_ND[2, 14] = torch.nan, torch.inf
        writer.write(rows, data)
        index = StoredIndex.open(run)
        assert index.column("bad").tolist() == [False, True, True, False]
        assert index.n_bad == 2
        taken_ND = index.take("gradient", range(4))
        assert torch.isnan(taken_ND[1, 3])
        assert not torch.isfinite(taken_ND[2, 14])
        assert torch.isfinite(taken_ND[[0, 3]]).all()
        assert torch.isnan(index.products("gradient", torch.ones(2, LAYOUT.size))).all(0).tolist() == [False, True, True, False]
        assert [f.status for f in verify(run) if f.name == "bad rows"] == ["warn"]


def test_a_number_too_large_for_the_stored_dtype_makes_the_row_bad(tmp_path: Path):
    writer = Writer.open(tmp_path, make_spec(dtype="bfloat16"))
    (rows,) = writer.begin("corpus", 4).missing()
    data = make_data(rows)
    data.gradient_ND[0, 0] = 3.4e38  # finite in float32, infinite in bfloat16
    writer.write(rows, data)
    assert StoredIndex.open(tmp_path).column("bad").tolist() == [True, False, False, False]


def test_a_row_may_be_declared_bad(tmp_path: Path):
    writer = Writer.open(tmp_path, make_spec())
    (rows,) = writer.begin("corpus", 4).missing()
    data = make_data(rows)
    writer.write(rows, replace(data, columns={**data.columns, "bad": [False, False, True, False]}))
    index = StoredIndex.open(tmp_path)
    assert torch.isnan(index.products("gradient", torch.ones(1, LAYOUT.size)))[0].tolist() == [False, False, True, False]


# ------------------------------------------------------------------------------------------- bytes, resume, append


def test_what_is_put_on_the_disk_is_what_gets_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that writes to a file of its own, and renames it over ours, would have it neither locked nor on the disk."""
    on_disk, named = set[int](), set[int]()
    fsync, replace_ = os.fsync, os.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda file: (on_disk.add(os.fstat(file).st_ino), fsync(file))[1])
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (named.add(os.stat(a).st_ino), replace_(a, b))[1])
    writer = Writer.open(tmp_path, make_spec())
    writer.write(range(4), make_data(writer.begin("corpus", 4).rows))
    assert len(named) == 5, "the spec, the part, two files and a commit"
    assert named <= on_disk


def test_bytes_depend_on_the_rows_alone(tmp_path: Path):
    fill(tmp_path / "one")
    writer = Writer.open(tmp_path / "two", make_spec())
    for rows in reversed(writer.begin("corpus", 10).missing()):
        writer.write(rows, make_data(rows))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_missing_are_absolute_ranges_of_at_most_a_shard(tmp_path: Path):
    fill(tmp_path, 10)
    part = Writer.open(tmp_path, make_spec()).begin("other", 5, append=True)
    assert part.rows == range(10, 15)
    assert part.missing() == [range(10, 14), range(14, 15)]


def test_resume_writes_what_is_missing_and_nothing_else(tmp_path: Path):
    fill(tmp_path)
    before = contents(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    commit_path(tmp_path, range(4, 8)).unlink()  # data without a commit counts as nothing
    assert len(StoredIndex.open(tmp_path)) == 6
    assert StoredIndex.open(tmp_path).missing_rows == (range(4, 8),)
    (tmp_path / "index/shards/.000000004-000000008.parquet.1-aa.tmp").write_bytes(b"left by a killed writer")
    fill(tmp_path)
    assert contents(tmp_path) == before
    touched = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert touched == {tensors_path(tmp_path, range(4, 8))}


@pytest.mark.parametrize("damage", ["truncated shard", "lost table", "corrupt commit", "commit of another index"])
def test_resume_redoes_a_damaged_shard(tmp_path: Path, damage: str):
    fill(tmp_path)
    before, rows = contents(tmp_path), range(4, 8)
    if damage == "truncated shard":
        os.truncate(tensors_path(tmp_path, rows), 100)
    elif damage == "lost table":
        table_path(tmp_path, rows).unlink()
    elif damage == "corrupt commit":
        commit_path(tmp_path, rows).write_text('{"rows": [4')
    else:
        value = json.loads(commit_path(tmp_path, rows).read_text())
        commit_path(tmp_path, rows).write_text(json.dumps({**value, "spec": "0" * 16}))
    assert Writer.open(tmp_path, make_spec()).begin("corpus", 10).missing() == [rows]
    fill(tmp_path)
    assert contents(tmp_path) == before


def test_append_adds_rows_after_the_others(tmp_path: Path):
    fill(tmp_path, 10)
    fill(tmp_path, 5, fingerprint="more", prefix="b", append=True)
    index = StoredIndex.open(tmp_path)
    assert len(index) == 15
    assert index.ids[10:] == tuple(columns(range(10, 15), "b")["id"])
    torch.testing.assert_close(index.take("gradient", [12]), make_data(range(12, 13)).gradient_ND)


def test_an_unfinished_append_is_resumed_by_the_same_command(tmp_path: Path):
    fill(tmp_path, 10)
    writer = Writer.open(tmp_path, make_spec())
    first = writer.begin("more", 8, append=True).missing()[0]
    writer.write(first, make_data(first, prefix="b"))
    assert writer.begin("more", 8, append=True).missing() == [range(14, 18)]


def test_two_writers_fill_different_shards_at_once(tmp_path: Path):
    fill(tmp_path / "one", 40)
    run = tmp_path / "two"
    writers = [Writer.open(run, make_spec()) for _ in range(2)]
    missing = [writer.begin("corpus", 40).missing() for writer in writers]
    assert missing[0] == missing[1]

    def work(k: int) -> None:
        for rows in missing[k][k::2]:
            writers[k].write(rows, make_data(rows))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert contents(run) == contents(tmp_path / "one")


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"dtype": "bfloat16"}, LayoutMismatch, "dtype"),
        ({"layout": replace(LAYOUT, sketch_seed=1)}, LayoutMismatch, "layout"),
        ({"gradient_of": "measure"}, LayoutMismatch, "gradient_of"),
        ({"hidden_size": None}, LayoutMismatch, "hidden_size"),
        ({"shard_rows": 5}, IntegrityError, "shard_rows"),
        ({"facts": {"model": "other", "task": "causal"}}, IntegrityError, "facts.model"),
        ({"facts": {"task": "causal"}}, IntegrityError, "facts.model"),
    ],
)
def test_another_spec_is_refused_by_the_name_of_what_differs(tmp_path: Path, changes: dict, error: type, field: str):
    fill(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(error, match=rf"differ: {field} \(here .*another folder"):
        Writer.open(tmp_path, IndexSpec(**{**make_spec().__dict__, **changes}))
    assert contents(tmp_path) == before


def test_a_spec_survives_its_json():
    spec = make_spec(facts={"threads": 2, "nested": {"a": [1, 2]}})
    assert IndexSpec.from_json(json.loads(json.dumps(spec.to_json()))).to_json() == spec.to_json()


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"shard_rows": 0}])
def test_a_spec_that_cannot_be_is_a_usage_error(changes: dict):
    with pytest.raises(UsageError):
        make_spec(**changes)


def test_another_corpus_is_refused_without_append(tmp_path: Path):
    fill(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(IntegrityError, match=r"--append.*another folder"):
        Writer.open(tmp_path, make_spec()).begin("other", 10)
    assert contents(tmp_path) == before


def test_appending_what_is_there_is_refused(tmp_path: Path):
    fill(tmp_path)
    with pytest.raises(IntegrityError, match="nothing to append"):
        Writer.open(tmp_path, make_spec()).begin("corpus", 10, append=True)


def test_appending_to_an_unfinished_part_is_refused(tmp_path: Path):
    Writer.open(tmp_path, make_spec()).begin("corpus", 10)
    with pytest.raises(IntegrityError, match=r"unfinished \(3 of 3 shards"):
        Writer.open(tmp_path, make_spec()).begin("more", 4, append=True)
    assert len(list((tmp_path / "index/parts").iterdir())) == 1


def test_the_same_corpus_with_another_number_of_rows_is_refused(tmp_path: Path):
    fill(tmp_path)
    with pytest.raises(IntegrityError, match="with 10 rows, now it has 9"):
        Writer.open(tmp_path, make_spec()).begin("corpus", 9)


def test_an_empty_corpus_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no rows"):
        Writer.open(tmp_path, make_spec()).begin("corpus", 0)


def test_an_id_twice_is_refused(tmp_path: Path):
    fill(tmp_path)
    writer = Writer.open(tmp_path, make_spec())
    (rows,) = writer.begin("more", 4, append=True).missing()
    clash = {**columns(rows, "b"), "id": columns(range(2, 6))["id"]}
    with pytest.raises(DataError, match=r"4 ids of rows 10\.\.14 are in the index already"):
        writer.write(rows, replace(make_data(rows), columns=clash))
    within = {**columns(rows, "b"), "id": ["x", "y", "x", "z"]}
    with pytest.raises(DataError, match=r"1 ids .* \(x\)"):
        writer.write(rows, replace(make_data(rows), columns=within))
    assert not commit_path(tmp_path, rows).exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"gradient_ND": torch.zeros(4, 3)}, LayoutMismatch, "gradient is"),
        ({"gradient_norm_NK": torch.zeros(4, 1)}, LayoutMismatch, "gradient_norm is"),
        ({"representation_NH": None}, LayoutMismatch, "representation is None"),
        ({"representation_response_NH": torch.zeros(4, 2)}, LayoutMismatch, "representation_response is"),
        ({"columns": {**columns(range(4)), "loss": [0.0]}}, DataError, "'loss': 1"),
        ({"columns": {k: v for k, v in columns(range(4)).items() if k != "loss"}}, DataError, r"missing columns \['loss'\]"),
        ({"columns": {**columns(range(4)), "tags": [1] * 4}}, DataError, r"unknown columns \['tags'\]"),
        ({"columns": {**columns(range(4)), "n_tokens": ["many"] * 4}}, DataError, "row table"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, error: type, words: str):
    writer = Writer.open(tmp_path, make_spec())
    (rows,) = writer.begin("corpus", 4).missing()
    with pytest.raises(error, match=words):
        writer.write(rows, replace(make_data(rows), **changes))
    assert len(StoredIndex.open(tmp_path)) == 0


def test_a_range_that_is_no_shard_is_refused(tmp_path: Path):
    writer = Writer.open(tmp_path, make_spec())
    writer.begin("corpus", 10)
    with pytest.raises(UsageError, match="is no shard of this index"):
        writer.write(range(1, 5), make_data(range(1, 5)))


def test_text_with_half_a_character_is_kept_legible(tmp_path: Path):
    writer = Writer.open(tmp_path, make_spec())
    (rows,) = writer.begin("corpus", 4).missing()
    data = make_data(rows)
    writer.write(rows, replace(data, columns={**data.columns, "prompt": ["cut \ud83d", "é", "", "x" * 100_000]}))
    assert StoredIndex.open(tmp_path).column("prompt").tolist() == ["cut ?", "é", "", "x" * 100_000]


# --------------------------------------------------------------------------------------------------- killed writers

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_index_write import N_KILLED, Writer, make_data, make_spec
writer = Writer.open(Path(sys.argv[2]), make_spec())
missing = writer.begin("corpus", N_KILLED).missing()
print(len(missing), flush=True)
for rows in missing:
    writer.write(rows, make_data(rows))
    print(rows, flush=True)
"""
N_KILLED = 160


@pytest.mark.slow
def test_a_killed_writer_resumed_leaves_the_bytes_of_an_uninterrupted_one(tmp_path: Path):
    fill(tmp_path / "whole", N_KILLED)
    whole, run, chance = contents(tmp_path / "whole"), tmp_path / "killed", random.Random(0)
    left = []
    for _ in range(4):
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(run)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as child:
            assert child.stdout is not None
            left.append(int(child.stdout.readline()))
            for _ in range(chance.randrange(8)):
                child.stdout.readline()
            time.sleep(chance.uniform(0, 0.01))
            child.send_signal(signal.SIGKILL)
        assert all(finding.status != "fail" for finding in verify(run))
    assert 0 < left[-1] < left[0] == N_KILLED // 4  # each went on where the last one was killed, and none came to the end
    fill(run, N_KILLED)
    assert contents(run) == whole
    assert torch.isfinite(StoredIndex.open(run).norms("gradient")).all()
