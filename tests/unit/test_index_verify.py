"""Every kind of damage becomes a finding; repair withdraws the damaged shard and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save
from test_index_write import columns, contents, fill, make_spec

from headwater.index.files import Seal, commit_path, part_path, table_path, tensors_path
from headwater.index.read import StoredIndex
from headwater.index.table import table_bytes
from headwater.index.tombstones import add_tombstones
from headwater.index.verify import verify
from headwater.index.write import Writer
from headwater.types import Finding

ROWS = range(4, 8)


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == "fail"]


def flip_a_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def reseal(run: Path, **files: bytes) -> None:
    """Change a file and its commit together: what hashes cannot see."""
    value = json.loads(commit_path(run, ROWS).read_text())
    for kind, content in files.items():
        tensors_path(run, ROWS).with_suffix(f".{kind}").write_bytes(content)
        value["files"][kind] = {"bytes": len(content), "xxh3_64": Seal.of(content).xxh3_64}
    commit_path(run, ROWS).write_text(json.dumps(value))


def test_a_sound_index_is_ok_in_every_respect(tmp_path: Path):
    fill(tmp_path)
    findings = verify(tmp_path)
    assert statuses(findings) == dict.fromkeys(["shards", "completeness", "ids", "tombstones", "bad rows", "stray files"], "ok")
    assert all(json.dumps(finding.to_json()) for finding in findings)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: flip_a_byte(tensors_path(run, ROWS)), "its bytes have changed"),
        (lambda run: flip_a_byte(table_path(run, ROWS), 100), "its bytes have changed"),
        (lambda run: os.truncate(tensors_path(run, ROWS), 100), "100 bytes, expected"),
        (lambda run: table_path(run, ROWS).unlink(), "no file, expected"),
        (lambda run: commit_path(run, ROWS).write_text("{"), "cannot be read as JSON"),
        (lambda run: commit_path(run, ROWS).write_text("{}"), "is not a commit"),
        (lambda run: commit_path(run, ROWS).write_bytes(commit_path(run, range(4)).read_bytes()), "a file of another run"),
        (lambda run: reseal(run, safetensors=b"\0" * 50), "cannot be read as safetensors"),
        (lambda run: reseal(run, safetensors=save({**load_file(tensors_path(run, range(8, 10)))})), "gradient is"),
        (lambda run: reseal(run, parquet=b"PAR1 no"), "cannot be read as a row table"),
        (lambda run: reseal(run, parquet=table_bytes({**columns(range(2)), "bad": [False] * 2})), "has 2 rows, expected 4"),
        (lambda run: reseal(run, safetensors=_with_hidden_nan(run)), "1 rows are not finite and not marked as bad"),
    ],
)
def test_damage_is_one_failure_with_the_way_out_and_repair_brings_it_back(tmp_path: Path, damage, words: str):
    fill(tmp_path)
    before = contents(tmp_path)
    damage(tmp_path)
    (failure,) = failures(verify(tmp_path))
    assert words in failure.because
    assert "--repair" in str(failure.next_step)
    assert (tmp_path / "index/commits").exists()
    (failure,) = failures(verify(tmp_path, repair=True))
    assert "withdrawn" in str(failure.next_step)
    assert Writer.open(tmp_path, make_spec()).begin("corpus", 10).missing() == [ROWS]
    fill(tmp_path)
    assert contents(tmp_path) == before
    assert failures(verify(tmp_path)) == []


def _with_hidden_nan(run: Path) -> bytes:
    tensors = load_file(tensors_path(run, ROWS))
    tensors["gradient_stored_norm"][2] = float("nan")
    return save(tensors)


def test_without_repair_nothing_is_changed(tmp_path: Path):
    fill(tmp_path)
    flip_a_byte(tensors_path(tmp_path, ROWS))
    before = contents(tmp_path)
    verify(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("content", ["{", "{}", '{"rows": [1, 4], "fingerprint": "", "shards": [[1, 4]]}'])
def test_a_damaged_part_is_a_finding(tmp_path: Path, content: str):
    fill(tmp_path)
    part_path(tmp_path, range(10)).write_text(content)
    assert statuses(verify(tmp_path)) == {"index records": "fail"}


def test_parts_that_overlap_are_a_finding(tmp_path: Path):
    fill(tmp_path)
    value = {"rows": [8, 12], "fingerprint": "other", "shards": [[8, 12]]}
    part_path(tmp_path, range(8, 12)).write_text(json.dumps(value))
    (finding,) = verify(tmp_path)
    assert "two parts overlap" in finding.because


def test_no_index_is_a_finding(tmp_path: Path):
    (finding,) = verify(tmp_path)
    assert finding.status == "fail"
    assert "no index" in finding.because


def test_missing_shards_and_stray_files_are_warnings(tmp_path: Path):
    fill(tmp_path)
    commit_path(tmp_path, ROWS).unlink()
    (tmp_path / "index/shards/.x.parquet.1-aa.tmp").write_bytes(b"")
    findings = {finding.name: finding for finding in verify(tmp_path)}
    assert {name for name, finding in findings.items() if finding.status == "warn"} == {"completeness", "stray files"}
    assert findings["completeness"].because == "1 of 3 shards are not written yet: rows 4..8"
    assert findings["completeness"].value == 4
    assert findings["stray files"].value == 3  # tensors, table, temporary file
    assert failures(list(findings.values())) == []


def test_an_id_on_two_rows_is_a_failure(tmp_path: Path):
    fill(tmp_path)
    table = columns(ROWS)
    reseal(tmp_path, parquet=table_bytes({**table, "id": [columns(range(1))["id"][0], *table["id"][1:]], "bad": [False] * 4}))
    (failure,) = failures(verify(tmp_path))
    assert (failure.name, failure.because[:36]) == ("ids", "1 ids stand for more than one row: a")


def test_a_tombstone_of_a_row_that_is_not_there_is_a_warning(tmp_path: Path):
    fill(tmp_path)
    add_tombstones(tmp_path, [columns(ROWS)["id"][0]], reason="planted")
    assert statuses(verify(tmp_path))["tombstones"] == "ok"
    commit_path(tmp_path, ROWS).unlink()
    assert statuses(verify(tmp_path))["tombstones"] == "warn"
    assert len(StoredIndex.open(tmp_path)) == 6


def test_a_damaged_tombstone_is_a_failure(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "index/tombstones").mkdir()
    (tmp_path / "index/tombstones/a.json").write_text("[]")
    assert statuses(verify(tmp_path))["tombstones"] == "fail"
