"""The ablation: gradients under every loss mask, every preconditioner against its formula, the whole grid, what is explained."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.study.worlds import SMALL, small_task
from torch.nn.functional import cross_entropy

from headwater.evaluate.figure import proportion_figure
from headwater.methods.shared import whole
from headwater.model.session import load_session
from headwater.report.study_schema import options
from headwater.study.metrics import class_figures
from headwater.study.models import TINY
from headwater.study.parts import explained
from headwater.study.parts.ablation import Ablation, ekfac
from headwater.study.parts.example_space import Layers, Piece, by_layer, datainf, fisher, layer_of, pieces, plain, preconditioners
from headwater.study.parts.example_space import damped as tensor_damping
from headwater.study.parts.explained import CAUSES, Question
from headwater.study.parts.loss_masks import MASKS, loss_gradients, masked, padded_length, padding_id
from headwater.study.parts.part import place
from headwater.study.parts.points import METRICS, SCORES, Marks, Point, points, scored, values, variant
from headwater.study.world import QUICK, World
from headwater.training.folder import TrainerFolder
from headwater.types import Example, UsageError

ROW = Example("row", np.array([5, 6, 7, 8]), np.array([False, False, True, True]))


@pytest.fixture(scope="module")
def outcome(world: World):
    return Ablation()(world)


# ---------------------------------------------------------------------------------------------------------- loss masks


@pytest.mark.parametrize(
    ("mask", "tokens", "targets"),
    [
        ("none", [2, 2, 5, 6, 7, 8], [0, 1, 1, 1, 1, 1]),
        ("prompt", [5, 6, 7, 8, 2, 2], [0, 0, 1, 1, 1, 1]),
        ("padding", [5, 6, 7, 8], [0, 1, 1, 1]),
        ("prompt and padding", [5, 6, 7, 8], [0, 0, 1, 1]),
    ],
)
def test_a_mask_says_what_counts(mask, tokens, targets):
    found = masked(ROW, mask, length=6, pad_id=2)
    assert found.tokens.tolist() == tokens
    assert found.loss_mask.tolist() == [bool(target) for target in targets]
    assert found.id == ROW.id


def test_a_row_as_long_as_the_length_has_no_padding():
    assert masked(ROW, "none", length=4, pad_id=2).tokens.tolist() == ROW.tokens.tolist()


def test_padded_length_gives_the_share_of_padding():
    rows = [ROW, replace(ROW, tokens=np.arange(6), loss_mask=np.ones(6, dtype=bool))]  # mean length 5
    assert padded_length(rows, share=0.75, most=None) == 20
    assert padded_length(rows, share=0.75, most=10) == 10
    assert padded_length(rows, share=0.0, most=None) == 6
    assert padded_length(rows, share=0.0, most=4) == 6  # the rows were encoded so long


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_are_autograds_of_the_mean_cross_entropy(world: World, mask):
    """By hand: pad on the left (or on the right where the prompt is masked), and average over every position that counts."""
    session = load_session(TrainerFolder.open(world.out).final, dtype="float64")
    length, pad = 24, padding_id(session)
    rows = [masked(row, mask, length=length, pad_id=pad) for row in world.rows[:2]]
    found_ND = loss_gradients(session, world.index.layout, rows)
    for row, found_D in zip(world.rows[:2], found_ND, strict=True):
        padding = [pad] * (length - row.n_tokens if mask in ("none", "prompt") else 0)
        text = row.tokens.tolist()
        ids = torch.tensor([text + padding if mask == "prompt" else padding + text])
        labels = ids[0].clone()
        if mask in ("prompt", "prompt and padding"):
            labels[: row.last_prompt_position + 1] = -100
        session.model.zero_grad()
        cross_entropy(session.model(input_ids=ids).logits[0, :-1], labels[1:]).backward()
        named = dict(session.model.named_parameters())
        parts = [named[block.name].grad for block in world.index.layout.blocks]
        torch.testing.assert_close(found_D, torch.cat([part.flatten() for part in parts if part is not None]))


def test_the_response_alone_is_what_the_index_has_over_the_number_of_targets(world: World):
    counts_N = torch.tensor([row.n_loss_tokens for row in world.rows])
    found_ND = loss_gradients(world.session, world.index.layout, world.rows)
    torch.testing.assert_close(found_ND * counts_N[:, None], whole(world.index, "gradient"), rtol=1e-4, atol=1e-6)


def test_class_tasks_are_padded_to_the_share_and_harmful_ones_to_the_longest_row(world: World):
    rows = [*world.rows, *world.queries]
    assert Ablation(padding=0.5).length(world) == padded_length(rows, share=0.5, most=None)
    harmful = World(world.folder, small_task(family="harmful"), world.model, world.base, world.size, world.seed)
    assert Ablation(padding=0.5).length(harmful) == max(row.n_tokens for row in rows)


# ------------------------------------------------------------------------------------------------------ preconditioners


@pytest.mark.parametrize("n_numbers", [5, 12])
@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_preconditioners_are_their_formulas(n_numbers, factor):
    rng = torch.Generator().manual_seed(0)
    g_ND, v_QD = (torch.randn(n, n_numbers, generator=rng, dtype=torch.float64) for n in (7, 3))
    piece = Piece(0, n_numbers, v_QD @ g_ND.T, g_ND @ g_ND.T)
    c_DD, eye_DD = g_ND.T @ g_ND / 7, torch.eye(n_numbers, dtype=torch.float64)
    damping = factor * float(c_DD.trace()) / n_numbers
    single = [torch.linalg.inv(torch.outer(g_D, g_D) + damping * eye_DD) for g_D in g_ND]
    dense = {
        plain(piece): eye_DD,
        tensor_damping(piece, factor=factor): eye_DD / damping,
        datainf(piece, factor=factor): torch.stack(single).mean(0),
        fisher(piece, factor=factor): torch.linalg.inv(c_DD + damping * eye_DD),
    }
    for found, p_DD in dense.items():
        torch.testing.assert_close(found.products_QN, v_QD @ p_DD @ g_ND.T)
        torch.testing.assert_close(found.effects_N, (g_ND @ p_DD * g_ND).sum(1))


@pytest.mark.parametrize("name", ["datainf", "fisher"])
def test_summed_over_tensors_they_are_the_methods_of_the_package(world: World, name):
    rows_ND, queries_QD = whole(world.index, "gradient"), whole(world.asked, "gradient")
    key = {"datainf": "datainf", "fisher": "fisher 0.1"}[name]
    found = by_layer(world.index.layout, rows_ND, queries_QD, preconditioners([0.1]))[key]
    expected_QN = torch.from_numpy(world.scores(name).values_QN).double()
    torch.testing.assert_close(found.products_LQN.sum(0) / -len(rows_ND), expected_QN, rtol=2e-3, atol=2e-3 * float(expected_QN.std()))


def test_ekfac_is_the_packages_too(world: World):
    """Of mean losses where the package has sums: each row's count, and each query's, is what is between them."""
    rows_ND, queries_QD = (loss_gradients(world.session, world.index.layout, some) for some in (world.rows, world.queries))
    found_QN = ekfac(world, world.rows, rows_ND, queries_QD).products_LQN.sum(0)
    counts_N, counts_Q = (torch.tensor([one.n_loss_tokens for one in some]) for some in (world.rows, world.queries))
    expected_QN = torch.from_numpy(world.scores("ekfac", mode="model").values_QN).double()
    summed_QN = found_QN * counts_N * counts_Q[:, None] / len(rows_ND)
    torch.testing.assert_close(summed_QN, expected_QN, rtol=2e-3, atol=2e-3 * float(expected_QN.std()))


def test_a_tensor_without_gradient_has_no_part(world: World):
    rows_ND, queries_QD = whole(world.index, "gradient").clone(), whole(world.asked, "gradient")
    rows_ND[:, : world.index.layout.offsets[1]] = 0
    assert len(list(pieces(world.index.layout, rows_ND, queries_QD))) == len(world.index.layout.blocks) - 1
    found = by_layer(world.index.layout, rows_ND, queries_QD, preconditioners([1.0]))
    assert all(bool(torch.isfinite(one.products_LQN).all()) for one in found.values())


def test_layer_of_a_parameter():
    assert layer_of("base_model.model.model.layers.11.self_attn.q_proj.lora_A.default.weight") == 11
    assert layer_of("lm_head.weight") == -1


# --------------------------------------------------------------------------------------------------------------- scores


def made_layers() -> Layers:
    products_LQN = torch.tensor([[[100.0, 50, 0], [1, 2, 3], [3, 1, 2]], [[1, 2, 3], [1, 2, 3], [1, 2, 3]]], dtype=torch.float64)
    return Layers((0, 4), products_LQN, torch.full((2, 3), 4.0, dtype=torch.float64), torch.tensor([[4.0, 1, 1], [4, 1, 1]]).double())


def test_layers_by_sum_by_rank_and_alone():
    layers = made_layers()
    assert values(layers, "dot", "sum")[0].tolist() == [101, 52, 3]
    assert values(layers, "dot", "rank")[0].tolist() == [2, 2, 2]  # 3 2 1 and 1 2 3: the length of the first decides no more
    assert values(layers, "dot", "depth 4")[0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(values(layers, "cosine", "sum")[0], np.array([101, 52, 3]) / np.sqrt([8, 2, 2]))
    np.testing.assert_allclose(values(layers, "relative", "sum")[0], np.array([101, 52, 3]) / np.sqrt(8))


def test_hub_correction_is_z_of_each_row_over_the_queries():
    products_QN = torch.tensor([[10.0, 0], [12, 1], [14, 5]], dtype=torch.float64)
    ones_N = torch.ones(2, dtype=torch.float64)
    found_QN = scored(products_QN, ones_N, ones_N, "hub-corrected")
    np.testing.assert_allclose(found_QN[:, 0], [-1, 0, 1])
    np.testing.assert_allclose(found_QN.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(found_QN.std(0, ddof=1), 1)


def test_a_variant_can_be_read_again():
    choices = {"mask": "prompt and padding", "score": "dot", "layers": "depth 3"}
    assert options(variant(**choices)) == choices
    assert options(Point("none", "dot", "fisher 10").variant) == {"mask": "none", "score": "dot", "layers": "sum"}
    assert options("") == {}


# -------------------------------------------------------------------------------------------------------------- the grid


def test_the_grid_has_every_combination(outcome, world: World):
    named = ["none", "tensor damping", "datainf", "fisher 0.1", "fisher 1", "fisher 10", "fisher 100", "ekfac"]
    cells = {(cell.method, cell.variant, cell.metric): cell for cell in outcome.cells}
    assert len(cells) == len(outcome.cells)
    for name, mask, score, how, metric in product(named, MASKS, SCORES, ("sum", "rank"), (*METRICS, "hub_share")):
        cell = cells[name, f"mask={mask}; score={score}; layers={how}", metric]
        assert cell.value is not None
        assert 0 <= cell.value <= 1
    for mask, score, layer in product(MASKS, ("dot", "cosine"), (0, 1)):
        assert cells["none", f"mask={mask}; score={score}; layers=depth {layer}", "cover"].value is not None
    assert outcome.facts["points"] == len(named) * 4 * 4 * 2 + 4 * 2 * 2


def test_a_cell_is_what_its_scores_have(outcome, world: World):
    """The response alone, DataInf, hub-corrected: from mean losses, so by hand from the index over the number of targets."""
    counts_N, counts_Q = (np.array([one.n_loss_tokens for one in some]) for some in (world.rows, world.queries))
    scores_QN = world.scores("grad_dot").values_QN / counts_N / counts_Q[:, None]
    expected = class_figures(scores_QN, world.labels, world.k)
    found = {
        cell.metric: cell
        for cell in outcome.cells
        if cell.method == "none" and cell.variant == "mask=prompt and padding; score=dot; layers=sum"
    }
    for metric in (*METRICS, "hub_share"):
        assert found[metric].value == pytest.approx(expected[metric].value)
        assert found[metric].interval == pytest.approx(expected[metric].interval)


def test_repsim_on_base_and_tuned_model_on_prompt_and_response(outcome, world: World):
    cells = {(cell.variant, cell.metric): cell.value for cell in outcome.cells if cell.method == "repsim"}
    assert {name for name, _ in cells} == {f"model={model}; text={text}" for model in ("tuned", "base") for text in ("prompt", "response")}
    for text, name in (("prompt", "repsim"), ("response", "repsim_response")):
        expected = class_figures(world.scores(name).values_QN, world.labels, world.k)
        assert cells[f"model=tuned; text={text}", "auroc"] == pytest.approx(expected["auroc"].value)


def test_a_quick_world_has_fewer_dampings(world: World):
    quick = World(world.folder, world.task, world.model, world.base, replace(SMALL, is_quick=QUICK.is_quick), world.seed)
    assert Ablation().tried(quick) == (0.1, 10.0)
    assert Ablation().tried(world) == (0.1, 1.0, 10.0, 100.0)


def test_what_it_does_not_fit(tmp_path: Path):
    classifier = World(tmp_path, small_task(), replace(TINY, task="sequence-classification"), "", SMALL, 0)
    assert "classifier" in Ablation().unfit(classifier)
    task = small_task()
    few = World(tmp_path, replace(task, queries=task.queries[:2]), TINY, "", SMALL, 0)
    assert "2 queries" in Ablation().unfit(few)
    assert Ablation().unfit(World(tmp_path, task, TINY, "", SMALL, 0)) == ""


def test_wrong_options():
    with pytest.raises(UsageError, match="none of the dampings"):
        Ablation(damping=3.0)
    with pytest.raises(UsageError, match="share of all positions"):
        Ablation(padding=1.0)


# ------------------------------------------------------------------------------------------------------------- explained


def made_marks(*values_Q: float) -> Marks:
    return Marks(dict.fromkeys(METRICS, np.array(values_Q)), proportion_figure(0, len(values_Q)))


def made_table() -> dict[Point, Marks]:
    """Accuracy by rule: a query is right where the hubs are mended, and one more where prompt *and* padding are masked."""

    def right(point: Point) -> Marks:
        hubs, masks = point.score != "dot", point.mask == "prompt and padding"
        return made_marks(float(hubs), float(hubs), float(masks), 0.0)

    return {point: right(point) for point in points(MASKS, ["none", "fisher 10"], [0])}


def made_question() -> Question:
    return Question(
        paper=Point("none", "dot", "none"),
        best=Point("prompt and padding", "cosine", "fisher 10", "rank"),
        unhubbed="hub-corrected",
        solved="fisher 10",
        ceiling=made_marks(1, 1, 1, 1),
    )


def test_mended_causes_are_points_of_the_grid():
    question = made_question()
    assert question.mended(()) == question.paper
    assert question.mended({"prompt"}).mask == "prompt"
    assert question.mended({"padding", "hubs"}) == Point("padding", "hub-corrected", "none")
    assert question.mended(CAUSES) == Point("prompt and padding", "hub-corrected", "fisher 10")


def test_one_mended_and_one_put_back(world: World):
    cells = {(c.variant, c.metric): c for c in explained.one_changed(place(Ablation(), world), made_table(), made_question())}
    mended, back = "accuracy change (one mended)", "accuracy change (one put back)"
    assert cells["score=cosine", mended].value == 0.5
    assert cells["score=relative", mended].value == 0.5
    assert cells["mask=prompt and padding", mended].value == 0.25
    assert cells["mask=prompt", mended].value == 0
    assert cells["preconditioner=fisher 10", mended].value == 0
    assert cells["layers=rank", mended].value == 0
    assert cells["all", mended].value == 0.75
    assert cells["score=dot", back].value == -0.5
    assert cells["mask=none", back].value == -0.25
    assert cells["preconditioner=none", back].value == 0
    assert cells["layers=sum", back].value == 0
    assert not any("depth" in name for name, _ in cells)
    start = "start=best practice; preconditioner=fisher 10; mask=prompt and padding; score=cosine; layers=rank"
    assert cells[start, "cover"].value == 0.75


def test_causes_add_up_and_an_interaction_is_shared(world: World):
    cells = {(c.variant, c.metric): c for c in explained.causes(place(Ablation(), world), made_table(), made_question())}
    found = {name: cells[f"cause={name}", "accuracy points"].value for name in (*CAUSES, "all", "remaining", "failure")}
    assert found == pytest.approx(
        {"padding": 0.125, "prompt": 0.125, "hubs": 0.5, "solver": 0, "all": 0.75, "remaining": 0.25, "failure": 1}
    )
    assert cells["cause=padding", "accuracy points (first)"].value == 0  # with the prompt still in the loss
    assert cells["cause=padding", "accuracy points (last)"].value == 0.25
    assert cells["cause=hubs", "cover share"].value == pytest.approx(0.5)
    interval = cells["cause=hubs", "cover share"].interval
    assert interval is not None
    assert interval[0] < 0.5 < interval[1]


def test_where_nothing_fails_nothing_is_explained(world: World):
    table = {point: made_marks(1, 1, 1, 1) for point in points(MASKS, ["none", "fisher 10"], [0])}
    cells = {(c.variant, c.metric): c for c in explained.causes(place(Ablation(), world), table, made_question())}
    assert cells["cause=hubs", "accuracy share"].value is None
    assert "nothing fails" in cells["cause=hubs", "accuracy share"].because
    assert cells["cause=failure", "accuracy points"].value == 0


def test_the_figures_say_the_same_as_the_cells():
    table, question = made_table(), made_question()
    changes = explained.figure(table, question)
    bars = {series.name: dict(zip(series.x, series.y, strict=True)) for series in changes.series}
    assert bars["accuracy, one mended"]["score: dot → cosine"] == 0.5
    assert bars["accuracy, one mended"]["remains"] == 0.25
    assert bars["accuracy, lost where one put back"]["mask: none → prompt and padding"] == 0.25
    assert bars["accuracy, lost where one put back"]["remains"] is None
    parts = {series.name: sum(y for y in series.y if y is not None) for series in explained.causes_figure(table, question).series}
    assert parts == pytest.approx({"accuracy": 1, "cover": 1})
