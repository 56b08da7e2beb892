"""The LDS benchmark at its smallest: it runs, goes on where it stopped, and what must hold at any size does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import lds
from benchmarks.lds import (
    ORACLE,
    RULES,
    SAMPLED,
    SMALL,
    STAGES,
    Bench,
    Scoring,
    Size,
    Variant,
    measure,
    own_task,
    paper_task,
    run_stages,
    show,
    variants,
)
from tests.conform.encoder import save_tiny_encoder

from headwater import curvature, methods
from headwater.progress import quiet
from headwater.types import Scores, Truth, UsageError

DATA = Path("../shared/data")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the Trainer's own
def test_the_benchmark_runs_and_says_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lds, "encoder_folder", lambda: save_tiny_encoder(tmp_path / "encoder"))
    bench = Bench(tmp_path / "work", "own", DATA, replace(SMALL, sweep=(0.1,)), processes=1)
    with quiet():
        assert measure(bench, until="index") is None
        result = measure(bench)
        again = measure(bench)
    assert result is not None
    assert again is not None
    assert again == result, "all stages were done, and their seconds kept"
    json.dumps(result, allow_nan=False)
    assert {variant.name for variant in variants(bench.size)} - {SAMPLED.name} | {ORACLE} == set(result["methods"])
    assert set(result["sample"]["methods"]) == {name for name, one in result["methods"].items() if one.get("is_default", True)} | {
        SAMPLED.name
    }
    assert set(result["left_out"]) == {"ggn of the model"}
    solved = result["sample"]["methods"][SAMPLED.name]
    assert solved["residual_of"] == "ggn"
    assert solved["steps"] <= lds.STEPS
    assert (result["trainings"], result["diverged"], result["kept_share"]) == (12, 0, 0.5)
    assert result["methods"]["fisher 0.1"]["is_default"]
    assert set(result["best_damping"]) == set(curvature.names()) - {"identity"}
    assert all(one["interval"] is None or one["interval"][0] <= one["interval"][1] for one in result["methods"].values())
    assert set(result["stage_seconds"]) == set(STAGES)
    show(result)
    shown = capsys.readouterr().out
    assert "beats the same-class oracle" in shown
    assert f"{solved['steps']} steps, residual" in shown
    with pytest.raises(UsageError, match="choose another --work"):
        run_stages(Bench(bench.work, "own", DATA, Size(), 1), "pretrain")


def test_every_method_of_the_registry_is_in_the_table() -> None:
    assert {variant.method for variant in variants(Size())} == set(methods.names())
    defaults = [variant.name for variant in variants(Size()) if variant.damping == 0.1 and not variant.sampled]
    assert len(defaults) == len(set(curvature.names()) - {"identity"}), "each curvature stands there with its default"


def test_the_sample_is_two_queries_of_each_class_and_its_figures_are_of_these_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "own", DATA, Size(rows=600), processes=1)
    classes = {query["id"]: query["variation"] for query in bench.task.queries}
    assert sorted(classes[one] for one in bench.sample) == sorted([*RULES, *RULES])
    outcomes_DSQ = np.random.default_rng(0).normal(size=(8, 2, len(classes)))
    kept_DN = np.random.default_rng(1).random((8, 5)) < 0.5
    truth = Truth(
        outcomes_DSQ=outcomes_DSQ,
        kept_DN=kept_DN,
        train_ids=tuple("abcde"),
        query_ids=tuple(classes),
        seeds=(0, 1),
        kind="cold",
        unit="nats",
    )
    part = lds.of_queries(truth, bench.sample)
    assert set(part.query_ids) == set(bench.sample)
    scores = Scores(np.random.default_rng(2).normal(size=(len(classes), 5)), tuple(classes), truth.train_ids, "any", None)
    of_all = dict(zip(truth.query_ids, lds.spearman(scores, truth).value_Q, strict=True))
    of_some = dict(zip(part.query_ids, lds.spearman(scores, part).value_Q, strict=True))
    assert of_some == {one: of_all[one] for one in bench.sample}


def test_what_cannot_be_scored_is_left_out_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise UsageError("the encoder's package is not installed")

    monkeypatch.setattr(lds, "encoder_folder", missing)
    bench, embedding = Bench(tmp_path, "own", DATA, SMALL, processes=1), Variant("embedding", "embedding", {})
    scoring = Scoring.__new__(Scoring)  # an index is never reached
    with quiet():
        bench._score(embedding, scoring)
    assert bench.read(embedding) is None
    assert bench.why_not(embedding) == "the encoder's package is not installed"


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
