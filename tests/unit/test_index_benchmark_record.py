"""What a benchmark writes is enough to know what was measured, where and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import record as module
from benchmarks import scan as benchmark


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_result_is_written_with_its_command_and_machine(results: Path, capsys: pytest.CaptureFixture):
    module.record("speed", {"ratio": 3.5}, "python -m benchmarks.speed --json")
    value = json.loads((results / "speed.json").read_text())
    assert (value["name"], value["ratio"], value["command"]) == ("speed", 3.5, "python -m benchmarks.speed --json")
    assert value["machine"].keys() == {"python", "torch", "transformers", "headwater", "cpu", "threads"}
    assert len(value["date"]) == 10
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratio": 3.5}


def test_the_scan_benchmark_measures_a_small_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole of it, on few rows: the two sides are the same products, and the check of the best rows can fail."""
    for name, value in {"D": 96, "SHARD_ROWS": 256, "REPEATS": 1}.items():
        monkeypatch.setattr(benchmark, name, value)
    result = benchmark.measure(tmp_path, n_rows=600)
    assert result["top_100_identical"] == "64 of 64"
    assert result["ratio"] > 0
    index = benchmark.StoredIndex.open(tmp_path)
    shards = [benchmark.map_rows(path) for path in sorted((tmp_path / "index/shards").glob("*.safetensors"))]
    queries_QD = index.take("gradient", range(64))
    top = benchmark.top_products(index, queries_QD, 100)
    assert benchmark.agreement(top, shards, queries_QD) == "64 of 64"
    assert benchmark.agreement(top._replace(positions_QK=top.positions_QK.flip(1)), shards, queries_QD) == "0 of 64"
    plain_QN = benchmark.upcast(shards, queries_QD, block_rows=100)
    assert plain_QN.shape == (64, 600)
    assert (plain_QN - index.products("gradient", queries_QD)).abs().max() < 0.02 * plain_QN.abs().max()
