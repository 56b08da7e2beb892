"""The LDS benchmark at its smallest: it runs, goes on where it stopped, and what must hold at any size does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.lds import LEFT_OUT, ORACLE, RULES, SMALL, STAGES, Bench, Size, measure, own_task, paper_task, run_stages, show, variants

from headwater import curvature, methods
from headwater.progress import quiet
from headwater.types import UsageError

DATA = Path("../shared/data")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the Trainer's own
def test_the_benchmark_runs_and_says_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path / "work", "own", DATA, replace(SMALL, sweep=(0.1,)), processes=1)
    with quiet():
        assert measure(bench, until="index") is None
        result = measure(bench)
        again = measure(bench)
    assert result is not None
    assert again is not None
    assert again == result, "all stages were done, and their seconds kept"
    json.dumps(result, allow_nan=False)
    assert {variant.name for variant in variants(bench.size)} | {ORACLE} == set(result["methods"])
    assert set(result["left_out"]) == set(LEFT_OUT)
    assert (result["trainings"], result["diverged"], result["kept_share"]) == (12, 0, 0.5)
    assert result["methods"]["fisher 0.1"]["is_default"]
    assert set(result["best_damping"]) == set(curvature.names()) - {"identity", *LEFT_OUT}
    assert all(one["interval"] is None or one["interval"][0] <= one["interval"][1] for one in result["methods"].values())
    assert set(result["stage_seconds"]) == set(STAGES)
    show(result)
    assert "beats the same-class oracle" in capsys.readouterr().out
    with pytest.raises(UsageError, match="choose another --work"):
        run_stages(Bench(bench.work, "own", DATA, Size(), 1), "pretrain")


def test_every_method_of_the_registry_is_in_the_table_or_left_out_for_a_reason() -> None:
    named = {variant.method for variant in variants(Size())}
    assert named | set(LEFT_OUT) == set(methods.names())
    defaults = [variant.name for variant in variants(Size()) if variant.damping == 0.1]
    assert len(defaults) == len(set(curvature.names()) - {"identity", *LEFT_OUT}), "each curvature stands there with its default"


def test_the_own_task_has_ten_rules_and_no_query_among_its_rows() -> None:
    task = own_task(Size(rows=600))
    assert (len(task.rows), len(task.queries)) == (600, 100)
    assert {row["variation"] for row in task.rows} == set(RULES)
    assert not {row["prompt"] for row in task.rows} & {query["prompt"] for query in task.queries}
    assert task.rows == own_task(Size(rows=600)).rows
    shown, _, asked = task.rows[0]["prompt"].partition(" ; ")
    words, _, became = shown.partition(" -> ")
    rule = RULES[task.rows[0]["variation"]]
    assert became == " ".join(rule(words.split()))
    assert task.rows[0]["response"] == " ".join(rule(asked.removesuffix(" ->").split()))


@pytest.mark.skipif(not (DATA / "paper" / "grammars-train.parquet").exists(), reason="the paper's data is not here")
def test_the_papers_task_is_whole() -> None:
    task = paper_task(DATA, Size())
    assert (len(task.rows), len(task.queries)) == (900, 100)
    classes = {row["variation"] for row in task.rows}
    assert len(classes) == 10
    assert classes == {query["variation"] for query in task.queries}
