"""The part `behaviour`: what it trains on, distances and projections against plain ones, and that trainings are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.study.worlds import small_task, small_world

from headwater.model.session import load_session
from headwater.study.cells import Cell
from headwater.study.parts.behaviour import (
    BETWEEN,
    BREAKING,
    CHANGE,
    DISTANCE,
    ORDINARY,
    PROJECTION,
    RELATIVE,
    SUCCESS,
    TUNING,
    At,
    Behaviour,
    Ends,
    module_norms,
    rows_of,
)
from headwater.study.parts.part import Outcome
from headwater.study.world import World
from headwater.training.folder import TrainerFolder
from headwater.truth.retrain import measured


def says_river(text: str) -> bool:
    return "river" in text


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> World:
    """All queries of the class "yes": its rows are those that break the behaviour."""
    task = small_task(family="harmful")
    queries = tuple(query for query in task.queries if query.variation == "yes") * 2
    return small_world(tmp_path_factory.mktemp("harmful"), task=replace(task, queries=queries, anti=()))


@pytest.fixture(scope="module")
def outcome(harmful: World) -> Outcome:
    return Behaviour(complies=lambda text: True)(harmful)


def found(outcome: Outcome, method: str, metric: str, variant: str = "") -> Cell:
    (cell,) = [cell for cell in outcome.cells if (cell.method, cell.metric, cell.variant) == (method, metric, variant)]
    return cell


def last(harmful: World, kind: str) -> Any:
    folder = TrainerFolder.open(harmful.folder / "behaviour" / kind).checkpoints[-1]
    return load_session(folder.path), folder.step


def test_each_kind_is_as_many_rows_of_one_side(harmful: World) -> None:
    rows = rows_of(harmful)
    assert [len(of) for of in rows.values()] == [8, 8]
    assert {row.meta.get("variation", row.response) for row in rows[BREAKING]} == {"yes , both"}
    assert {row.response for row in rows[ORDINARY]} == {"no , one"}


def test_distances_are_those_of_the_adapters(harmful: World, outcome: Outcome) -> None:
    session, epoch = last(harmful, BREAKING)
    state = {name: parameter.detach().double() for name, parameter in session.model.named_parameters() if ".lora_" in name}
    changes = [32 / 4 * state[name.replace("lora_A", "lora_B")] @ a for name, a in state.items() if "lora_A" in name]
    norms = [float(change.norm()) for change in changes]
    np.testing.assert_allclose(np.sort(module_norms(session)), np.sort(norms), rtol=1e-5)
    cell = found(outcome, TUNING, DISTANCE, f"data=breaking; epoch={epoch}")
    assert cell.value == pytest.approx(np.mean(norms), rel=1e-5)
    assert (cell.n, cell.over) == (len(norms), "modules")
    below = [parameter for name, parameter in session.model.named_parameters() if "_proj.base_layer.weight" in name]
    expected = np.sqrt(sum(np.square(norms))) / np.sqrt(sum(float(weight.double().square().sum()) for weight in below))
    assert found(outcome, TUNING, RELATIVE, f"data=breaking; epoch={epoch}").value == pytest.approx(expected, rel=1e-5)


def test_the_projection_is_a_cosine_with_the_gradient_at_the_base(harmful: World, outcome: Outcome) -> None:
    """To first order a small step along the change moves the measure by gradient times step: the cosine's sign and size follow."""
    session, epoch = last(harmful, BREAKING)
    change = [(p, p.detach().clone()) for name, p in session.model.named_parameters() if ".lora_B." in name]
    gradients = []
    with torch.no_grad():
        for parameter, _ in change:
            parameter.zero_()
    for parameter, _ in change:
        parameter.requires_grad_(True)
    from headwater.corpus import collate

    for query in harmful.queries:
        batch = collate([query], pad_id=session.pad_id)
        value = harmful.measure.fn(session.run(batch), batch)[0]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, [p for p, _ in change])]))
    along = torch.cat([moved.flatten() for _, moved in change])
    cosines = [float(torch.cosine_similarity(gradient, along, dim=0)) for gradient in gradients]
    cell = found(outcome, TUNING, PROJECTION, f"data=breaking; epoch={epoch}")
    assert cell.value == pytest.approx(np.mean(cosines), abs=1e-4)


def test_training_on_the_behaviour_raises_it_more_than_on_other_rows(harmful: World, outcome: Outcome) -> None:
    _, epoch = last(harmful, BREAKING)
    ours, theirs = (found(outcome, TUNING, CHANGE, f"data={kind}; epoch={epoch}").value for kind in (BREAKING, ORDINARY))
    assert ours > theirs
    session, _ = last(harmful, BREAKING)
    by_hand = measured(session, harmful.measure, harmful.queries) - measured(harmful.base_session, harmful.measure, harmful.queries)
    assert ours == pytest.approx(by_hand.mean(), rel=1e-4)


def test_ratios_are_those_of_the_last_checkpoints(harmful: World, outcome: Outcome) -> None:
    _, epoch = last(harmful, BREAKING)
    ends = [found(outcome, TUNING, DISTANCE, f"data={kind}; epoch={epoch}").value for kind in (BREAKING, ORDINARY)]
    assert found(outcome, BETWEEN, f"ratio of {DISTANCE}s").value == pytest.approx(ends[0] / ends[1])
    assert found(outcome, BETWEEN, f"difference of {SUCCESS}").value == 0
    assert found(outcome, BETWEEN, f"ratio of {SUCCESS}").value == 1
    assert outcome.findings[0].status == "unknown"


def test_trainings_are_kept_and_the_recogniser_decides(harmful: World, outcome: Outcome) -> None:
    weights = sorted(Path(harmful.folder / "behaviour").glob("*/checkpoint-*/adapter_model.safetensors"))
    times = [path.stat().st_mtime_ns for path in weights]
    again = Behaviour(complies=says_river)(harmful)
    assert weights
    assert [path.stat().st_mtime_ns for path in weights] == times
    assert found(again, TUNING, SUCCESS, "data=none; epoch=0").value < 1
    assert found(outcome, TUNING, SUCCESS, "data=none; epoch=0").value == 1
    assert "no answer complies" in found(Behaviour(complies=lambda text: False)(harmful), BETWEEN, f"ratio of {SUCCESS}").because


def at(complies: float, cosine: float) -> At:
    n = 20
    jitter = np.linspace(-0.01, 0.01, n)
    shown = (np.arange(n) < complies * n).astype(float)
    return At(1.0, shown, np.array([1.0, 2.0]), 0.1, cosine + jitter, np.zeros(n))


def test_what_is_said_of_norm_and_projection() -> None:
    assert Ends(at(0.9, 0.3), at(0.0, 0.0)).finding().status == "ok"
    assert Ends(at(0.9, 0.1), at(0.0, 0.1)).finding().status == "warn"
    same = Ends(at(0.5, 0.3), at(0.5, 0.0)).finding()
    assert same.status == "unknown"
    assert "Undetermined" in same.because


def test_only_harmful_tasks_that_were_made_here_have_a_forbidden_behaviour(world: World, harmful: World) -> None:
    assert "harmful data" in Behaviour().unfit(world)
    assert Behaviour(complies=says_river).unfit(harmful) == ""
    released = World(harmful.folder, replace(harmful.task, source="data.parquet"), harmful.model, harmful.base, harmful.size, harmful.seed)
    assert "nothing here can tell" in Behaviour().unfit(released)
    assert Behaviour(complies=says_river).unfit(released) == ""
