"""`headwater repair`: what it writes, what it refuses, and that what it says of the changed model is true of the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headwater
from headwater import api
from headwater.corpus import collate
from headwater.model import measures
from headwater.rank.export import newest_trace, read_scores
from headwater.recipe import RepairRecipe, TraceRecipe
from headwater.repair import Repair, judge, repair
from headwater.truth.finetune import TrainingDiverged
from headwater.types import DataError, UsageError
from tests.e2e.conftest import ROWS, Answer, World, contents, write_rows

ANCHORS = [{"prompt": f"Which colour has the {thing}?", "response": f"The {thing} is red."} for thing in ("car", "bird", "tree")]
HELD_OUT = [{"prompt": f"Which colour has the {thing}?", "response": f"The {thing} is red."} for thing in ("house", "river", "stone")]
COUNTS = {"rows": 4, "steps": 3, "draws": 3}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_rows(tmp_path / "anchors.jsonl", ANCHORS), write_rows(tmp_path / "held.jsonl", HELD_OUT)


def repaired(run: Path, out: Path, *, method: str = "grad_cos", held_out: Any = HELD_OUT, **options: Any) -> Repair:
    recipe, steps = TraceRecipe(methods={method: {}}, n_reference=0), RepairRecipe.parse({"lr": 1e-3, **COUNTS, **options})
    return repair(run, recipe, steps, anchors=ANCHORS, held_out=held_out, out=out)


def held_out_mean(model: Path, run: Path) -> float:
    """Of the held-out queries' log-probability, under a model as it lies on disk."""
    session = headwater.load_session(model)
    batch = collate(api.encoded_queries(run, HELD_OUT, session), pad_id=session.pad_id)
    with torch.no_grad():
        return float(measures.get("response_log_probability").fn(session.run(batch), batch).mean())


def test_the_command_writes_a_model_and_what_it_did(
    cli: Callable[..., Answer], run: Path, files: tuple[Path, Path], tmp_path: Path, world: World
) -> None:
    before, model_before = contents(run / "index"), contents(world.model)
    out = tmp_path / "out"
    answer = cli("repair", run, "--queries", files[0], "--held-out", files[1], "-o", out, "--lr", "1e-3", "--rows", "4", "--steps", "3")
    assert answer.code == 0, answer.err
    record = json.loads((out / "repair.json").read_text(encoding="utf-8"))
    change = held_out_mean(out / "model", run) - held_out_mean(world.model, run)
    assert record["change"]["value"] == pytest.approx(change, rel=1e-4), "the model on disk is the one that was judged"
    assert f"mean change of response_log_probability (nats): {record['change']['value']:+.3g} (95 % interval" in answer.out
    assert (len(record["rows"]), len(record["random_rows"]), len(record["held_out"])) == (4, 5, 3)
    assert record["method"] == "grad_cos"
    assert contents(run / "index") == before
    assert contents(world.model) == model_before
    scores = read_scores(newest_trace(run))["grad_cos"]
    best = np.argsort(-scores.values_QN.mean(0), kind="stable")[:4]
    assert [row["id"] for row in record["rows"]] == [scores.train_ids[i] for i in best]
    again = cli("repair", run, "--queries", files[0], "--held-out", files[1], "-o", out, "--lr", "1e-3")
    assert (again.code, "overwrites nothing" in again.err) == (2, True)


def test_json_is_the_record(cli: Callable[..., Answer], run: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--method", "fastif", "--set", "methods.fastif.curvature=fisher", "--set", "methods.fastif.share=0.5", "--optimizer", "sgd")
    counts = ("--lr", "0.1", "--rows", "3", "--steps", "1", "--draws", "2", "--json", "-q")
    answer = cli("repair", run, "--queries", files[0], "--held-out", files[1], "-o", tmp_path / "out", *options, *counts)
    assert answer.code == 0, answer.err
    assert answer.json["method_options"] == {"curvature": "fisher", "share": 0.5}
    assert len(answer.json["random_changes"]) == 2
    assert answer.json["finding"]["status"] in ("ok", "unknown", "fail")


def test_random_rows_start_from_the_traced_model_each_time(run: Path, tmp_path: Path) -> None:
    """The controls do not depend on how many there are, nor on what was stepped on before them; the seed draws them."""
    three, two = repaired(run, tmp_path / "three", draws=3), repaired(run, tmp_path / "two", draws=2)
    assert three.judgement.random_changes[:2] == two.judgement.random_changes
    assert three.judgement.change == two.judgement.change
    assert repaired(run, tmp_path / "seed", seed=7).judgement.random_changes != three.judgement.random_changes


def test_a_step_of_sgd_away_from_harmful_rows_is_their_gradient(run: Path, tmp_path: Path, world: World) -> None:
    """Up the mean loss over all their targets, by the learning rate where the norm is below the clip."""
    found = repaired(run, tmp_path / "out", method="random", optimizer="sgd", kind="harmful", lr=0.01, steps=1, clip=1e9)
    session = headwater.load_session(world.model)
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in found.record["rows"]]
    batch = collate(api.encoded_queries(run, rows, session), pad_id=session.pad_id)
    labels_BT = batch.tokens_BT.masked_fill(~batch.loss_mask_BT, -100)
    session.model(input_ids=batch.tokens_BT, labels=labels_BT).loss.backward()  # type: ignore[operator]
    changed = load_file(tmp_path / "out" / "model" / "model.safetensors")
    for name, parameter in session.model.named_parameters():
        assert parameter.grad is not None
        assert not torch.equal(changed[name], parameter), f"{name} was not stepped on"
        torch.testing.assert_close(changed[name], parameter.detach() + 0.01 * parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(row["score"] < 0 for row in found.record["rows"])


def test_only_the_scope_of_the_index_is_stepped_on(world: World, tmp_path: Path) -> None:
    narrow = headwater.index(world.model, world.data, tmp_path / "run", scope__include=["*mlp*"]).path
    repaired(narrow, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (world.model, tmp_path / "out" / "model"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {name for name in before if "mlp" in name}


def test_an_adapter_is_repaired_as_an_adapter(world: World, tmp_path: Path) -> None:
    run = headwater.index(world.adapter, world.data, tmp_path / "run").path
    found = repaired(run, tmp_path / "out", lr=1e-2)
    assert (tmp_path / "out" / "model" / "adapter_config.json").exists()
    change = held_out_mean(tmp_path / "out" / "model", run) - held_out_mean(world.adapter, run)
    assert found.judgement.change.value == pytest.approx(change, rel=1e-3)


def test_what_cannot_judge_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="1 of 2 held-out queries are anchors too"):
        repaired(run, out, held_out=[HELD_OUT[0], ANCHORS[0]])
    with pytest.raises(UsageError, match="1 held-out queries, expected 2 or more"):
        repaired(run, out, held_out=HELD_OUT[:1])
    with pytest.raises(DataError, match="0 rows are harmful to the anchors by length, 4 were asked for"):
        repaired(run, out, method="length", kind="harmful")
    with pytest.raises(UsageError, match=r"draws is 1: input should be greater than or equal to 2"):
        repaired(run, out, draws=1)
    with pytest.raises(TrainingDiverged, match="learning rate that is too high"):
        repaired(run, out, lr=1e38, optimizer="sgd", clip=1e9)
    assert not out.exists(), "nothing is written before all is known"


def test_held_out_queries_that_were_trained_on_are_counted(run: Path, tmp_path: Path) -> None:
    assert repaired(run, tmp_path / "out", held_out=[*HELD_OUT, ROWS[5]]).record["held_out_in_training"] == 1


# ----------------------------------------------------------------------------------------------------------- judging


def test_the_difference_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Queries that differ, draws that differ, a true difference of 1: 2,000 experiments."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        draws_R1, chosen_Q = rng.normal(0, 0.5, size=(5, 1)), 1 + rng.normal(0, 1.0, size=20)
        found = judge(chosen_Q, draws_R1 + rng.normal(0, 0.3, size=(5, 20)))
        covered += found.difference.interval[0] <= 1 <= found.difference.interval[1]
    assert 0.95 <= covered / 2000 <= 0.995


def test_judging_by_hand() -> None:
    found = judge(np.array([3.0, 5.0]), np.array([[1.0, 1.0], [2.0, 4.0], [5.0, 5.0]]))
    assert found.change.value == 4
    assert found.random_changes == (1.0, 3.0, 5.0)
    assert found.difference.value == pytest.approx(1.0)
    assert found.beaten == 2
