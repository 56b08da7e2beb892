"""Each claim of the paper on cells made by hand: every verdict can be reached, and what cannot be tested says what it lacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.study.cells import Cell, Place
from headwater.study.claims import CLAIMS, PLANTED_CLAIMS, Claim, claims

IF = ("grad_dot", "datainf", "lissa_released")
TASKS = ("emotion", "grammars", "math")


def cell(task: str, method: str, value: float, *, part: str = "tables", metric: str = "accuracy", half: float = 0.03, seed: int = 0,
         variant: str = "") -> Cell:  # fmt: skip
    made = Place(task, "tiny", seed, part).cell(method, metric, value, variant=variant, n=100, over="queries")
    return replace(made, interval=(value - half, value + half))


def table(values: dict[str, float], *, tasks: tuple[str, ...] = TASKS, half: float = 0.03, part: str = "tables", metric: str = "accuracy"):
    return [cell(task, method, value, half=half, part=part, metric=metric) for task in tasks for method, value in values.items()]


def claim(cells: list[Cell], name: str) -> Claim:
    return next(one for one in claims(cells) if one.name.startswith(name))


def test_with_no_cells_nothing_can_be_tested_and_each_claim_says_what_it_lacks() -> None:
    found = claims([])
    assert len(found) == len(CLAIMS) + len(PLANTED_CLAIMS)
    assert {one.verdict for one in found} == {"cannot be tested"}
    assert all(len(one.because) > 20 and one.cells == () for one in found)


def test_a_missing_cell_gives_its_reason() -> None:
    empty = Place("math", "tiny", 0, "tables").missing("repsim", "accuracy", "no hidden states were stored")
    assert "no hidden states were stored" in claim([empty], "RepSim near").because


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [(0.99, 0.02, "reproduced"), (0.6, 0.05, "not reproduced"), (0.95, 0.05, "undetermined")],
)
def test_repsim_near_100(value: float, half: float, verdict: str) -> None:
    found = claim(table({"repsim": value}, half=half), "RepSim near")
    assert found.verdict == verdict
    assert {one.method for one in found.cells} == {"repsim"}
    assert len(found.votes) == 3


def test_most_settings_decide_and_the_numbers_are_told() -> None:
    cells = [cell("emotion", "repsim", 0.99, half=0.01), cell("math", "repsim", 1.0, half=0.0), cell("grammars", "repsim", 0.5)]
    found = claim(cells, "RepSim near")
    assert found.verdict == "reproduced"
    assert "holds in 2 of 3 settings, fails in 1" in found.because
    assert "grammars (tiny): 0.50 (0.47 to 0.53)" in found.because
    assert claim(cells[1:], "RepSim near").verdict == "undetermined"  # one says yes and one no
    assert claim(cells[2:], "RepSim near").verdict == "not reproduced"


def test_planted_tasks_do_not_count() -> None:
    assert claim(table({"repsim": 1.0}, tasks=("cause-without-class",)), "RepSim near").verdict == "cannot be tested"


@pytest.mark.parametrize(("best", "verdict"), [(0.2, "reproduced"), (0.9, "not reproduced"), (0.5, "undetermined")])
def test_influence_is_poor_by_its_best(best: float, verdict: str) -> None:
    found = claim(table({"grad_dot": 0.1, "datainf": best, "repsim": 1.0}), "Influence functions do poorly")
    assert found.verdict == verdict
    assert "the best of them, datainf" in found.because


def test_repsim_against_the_best_influence_function() -> None:
    name = "RepSim does better"
    assert claim(table({"repsim": 0.9, "grad_dot": 0.4, "datainf": 0.7}), name).verdict == "reproduced"
    assert claim(table({"repsim": 0.5, "grad_dot": 0.4, "datainf": 0.7}), name).verdict == "not reproduced"
    assert claim(table({"repsim": 0.71, "datainf": 0.7}), name).verdict == "undetermined"


def test_hessian_based_equals_hessian_free_with_the_exact_inverse_beside_it() -> None:
    name = "Hessian-based"
    same = claim(table({"grad_dot": 0.5, "datainf": 0.51, "lissa_released": 0.5, "fisher": 0.9}), name)
    assert same.verdict == "reproduced"
    assert "further than that from grad_dot in 3 of 3 settings" in same.because
    assert claim(table({"grad_dot": 0.5, "datainf": 0.8, "lissa_released": 0.5}), name).verdict == "not reproduced"
    wide = claim(table({"grad_dot": 0.5, "datainf": 0.52}, half=0.15), name)
    assert wide.verdict == "undetermined"
    assert "was not measured" in wide.because


def test_equality_near_100_says_nothing() -> None:
    found = claim(table({"grad_dot": 1.0, "datainf": 0.99, "lissa_released": 1.0}), "Hessian-based")
    assert found.verdict == "undetermined"
    assert "where equality says nothing" in found.votes[0].told


def test_a_paired_difference_is_taken_where_a_part_left_one() -> None:
    cells = table({"grad_dot": 0.5, "datainf": 0.52}, half=0.15)
    paired = [cell(task, "datainf", 0.02, metric="accuracy less grad_dot", half=0.02) for task in TASKS]
    assert claim([*cells, *paired], "Hessian-based").verdict == "reproduced"


def test_released_lissa_by_rank_correlation_and_else_by_accuracy() -> None:
    name = "The released LiSSA"
    values = {"grad_dot": 0.5, "lissa_released": 0.8}
    assert claim(table(values), name).verdict == "not reproduced"
    solver = table({"lissa_released": 0.9999}, part="solver", metric="rank correlation to dot", half=0.0001)
    assert claim([*table(values), *solver], name).verdict == "reproduced"
    assert claim([*table(values), *table({"lissa_released": 0.6}, part="solver", metric="rank correlation to dot")], name).verdict == (
        "not reproduced"
    )


@pytest.mark.parametrize(
    ("easy", "hard", "verdict"), [(0.9, 0.4, "reproduced"), (0.6, 0.65, "not reproduced"), (0.6, 0.53, "undetermined")]
)
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("Accuracy falls with the share", "harmful-S", "harmful-L"), ("Accuracy falls with the number", "backdoor-1", "backdoor-5")],
)
def test_accuracy_falls(name: str, first: str, last: str, easy: float, hard: float, verdict: str) -> None:
    cells = [cell(task, method, value, half=0.08) for task, value in ((last, hard), (first, easy)) for method in IF]
    assert claim(cells, name).verdict == verdict
    assert claim(cells[:3], name).verdict == "cannot be tested"


@pytest.mark.parametrize("names", [("backdoor", "multibackdoor", "multibackdoor5"), ("mixedS", "mixedM", "mixedL")])
def test_the_released_names_are_known(names: tuple[str, ...]) -> None:
    cells = [cell(task, "grad_dot", value) for task, value in zip(names, (0.9, 0.6, 0.3), strict=True)]
    found = claim(cells, "Accuracy falls with the share" if "mixed" in names[0] else "Accuracy falls with the number")
    assert found.verdict == "reproduced"
    assert f"{names[0]} 0.90, {names[1]} 0.60 and {names[2]} 0.30" in found.because


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "reproduced"), (0.3, "not reproduced"), (0.7, "undetermined")])
def test_a_single_trigger(value: float, verdict: str) -> None:
    assert claim(table({"datainf": value}, tasks=("backdoor-1",)), "With a single trigger").verdict == verdict


@pytest.mark.parametrize(
    ("name", "metric", "values"),
    [("Theorem 1", "mean eigenvalue over damping", (0.01, 40.0, 0.5)), ("The curvature", "rank over rows", (0.02, 0.9, 0.3))],
)
def test_the_regime_and_the_rank(name: str, metric: str, values: tuple[float, float, float]) -> None:
    for value, verdict in zip(values, ("reproduced", "not reproduced", "undetermined"), strict=True):
        cells = table({"theorem 1": value}, part="solver", metric=metric, half=0.0)
        assert claim(cells, name).verdict == verdict


def course(method: str, values: tuple[float, ...], task: str, seed: int) -> list[Cell]:
    return [cell(task, method, v, part="epochs", variant=f"epoch={k}", seed=seed) for k, v in enumerate(values)]


@pytest.mark.parametrize(
    ("influence", "repsim", "verdict"),
    [((0.2, 0.7, 0.3), (0.9, 0.92, 0.91), "reproduced"), ((0.2, 0.21, 0.2), (0.9, 0.5, 0.9), "not reproduced")],
)
def test_unstable_over_epochs(influence: tuple[float, ...], repsim: tuple[float, ...], verdict: str) -> None:
    cells = [one for task in TASKS for seed in (0, 1) for name in IF for one in course(name, influence, task, seed)]
    cells += [one for task in TASKS for seed in (0, 1) for one in course("repsim", repsim, task, seed)]
    assert claim(cells, "Influence functions are unstable").verdict == verdict


def test_one_run_over_epochs_tells_nothing() -> None:
    cells = [*course("grad_dot", (0.2, 0.8), "math", 0), *course("repsim", (0.9, 0.9), "math", 0)]
    found = claim(cells, "Influence functions are unstable")
    assert found.verdict == "undetermined"
    assert "One run gives no interval" in found.because


def behaviour(success: float, distance: float) -> list[Cell]:
    cells = []
    for data, epoch, rate, moved in (("breaking", 1, 0.1, 0.2), ("breaking", 10, success, distance), ("ordinary", 10, 0.05, 1.0)):
        named = f"data={data}; epoch={epoch}"
        cells.append(cell("backdoor-1", "training", rate, part="behaviour", metric="attack success", variant=named))
        cells.append(cell("backdoor-1", "training", moved, part="behaviour", metric="parameter distance", variant=named))
    return cells


@pytest.mark.parametrize(
    ("success", "distance", "verdict"), [(0.9, 1.2, "reproduced"), (0.9, 6.0, "not reproduced"), (0.1, 1.0, "undetermined")]
)
def test_parameter_distance(success: float, distance: float, verdict: str) -> None:
    assert claim(behaviour(success, distance), "Parameter distance").verdict == verdict


def test_the_paired_difference_of_attack_success_goes_before_the_two_rates() -> None:
    facts = {"part": "behaviour", "half": 0.05}
    paired = [cell("backdoor-1", "breaking against ordinary", value, metric=f"difference of {metric}", **facts)
              for metric, value in (("attack success", 0.1), ("projection", 0.4))]  # fmt: skip
    found = claim([*behaviour(0.9, 1.2), *paired], "Parameter distance")
    assert found.verdict == "undetermined"
    assert "projection on the behaviour's gradient 0.40 (0.35 to 0.45) higher" in found.because


@pytest.mark.parametrize(
    ("repsim", "oracle", "verdict"), [(0.6, 0.4, "reproduced"), (0.1, 0.4, "not reproduced"), (0.6, 0.75, "not reproduced"),
                                      (0.41, 0.4, "undetermined")]
)  # fmt: skip
def test_repsim_and_the_cause(repsim: float, oracle: float, verdict: str) -> None:
    found = claim(
        table({"repsim": repsim, "same class": oracle, "noise ceiling": 0.8}, part="truth", metric="lds"), "RepSim finds the cause"
    )
    assert found.verdict == verdict
    assert found.origin == "implied"
    assert claim(table({"repsim": repsim}, part="truth", metric="lds"), "RepSim finds the cause").verdict == "cannot be tested"


def test_a_claim_goes_to_json_with_the_cells_that_say_so() -> None:
    found = claim(table({"repsim": 0.99}, half=0.01), "RepSim near").to_json()
    assert found["cells"][0] == {"task": "emotion", "model": "tiny", "seed": 0, "part": "tables", "method": "repsim", "metric": "accuracy",
                                 "variant": "", "value": 0.99}  # fmt: skip
    assert found["votes"][0] == {"where": "emotion (tiny)", "holds": True, "told": "0.99 (0.98 to 1.00)"}


def test_as_released_is_asked_at_the_released_point() -> None:
    name = "Influence functions do poorly in most settings (as released)"
    point = table({"none": 0.1, "datainf": 0.2}, part="ablation")
    cells = [replace(one, variant="mask=none; score=dot; layers=sum") for one in point]
    others = [replace(one, variant="mask=prompt; score=dot; layers=sum", value=0.9, interval=(0.87, 0.93)) for one in point]
    masked = table({"grad_dot": 0.9, "datainf": 0.95, "lissa_released": 0.9, "repsim": 1.0})
    found = claim([*masked, *others, *cells], name)
    assert found.verdict == "reproduced"
    assert {one.part for one in found.cells} == {"tables"}
    assert "grad_dot is below 0.5 in 3 of 3, with a mean of 0.10" in found.because
    assert claim([*masked, *others, *cells], "Influence functions do poorly").verdict == "not reproduced"
    assert claim([*masked, *others], name).verdict == "cannot be tested"
    assert "ablation" in claim(masked, name).because
    paired = table({"repsim": 0.3}, metric="accuracy less grad_dot")  # of the other loss: it says nothing of the released point
    assert claim([*masked, *paired], "RepSim does better than influence functions (as released)").verdict == "cannot be tested"
    above = claim([*masked, *cells], "RepSim does better than influence functions (as released)")
    assert above.verdict == "reproduced"


def test_as_released_takes_the_paired_difference_of_the_ablation() -> None:
    point = [replace(one, variant="mask=none; score=dot; layers=sum") for one in table({"none": 0.5, "datainf": 0.5}, part="ablation")]
    paired = table({"explained": 0.4}, part="ablation", metric="accuracy change (one mended)")
    cells = [*point, *(replace(one, variant="preconditioner=datainf") for one in paired)]
    assert claim(cells, "Hessian-based equals Hessian-free (as released)").verdict == "not reproduced"


@pytest.mark.parametrize(
    ("gradient", "repsim", "verdict"), [(0.95, 0.0, "reproduced"), (0.95, 0.9, "not reproduced"), (0.7, 0.0, "undetermined")]
)
def test_planted_tasks_are_checked_against_how_they_were_built(gradient: float, repsim: float, verdict: str) -> None:
    effect = table({"grad_cos": gradient, "grad_dot": 0.1, "repsim": repsim}, tasks=("planted-effect",))
    assert claim(effect, "The study can tell influence").verdict == verdict
    assert claim(effect, "The study can tell likeness").verdict == "cannot be tested"
    words = table({"grad_cos": repsim, "repsim": gradient}, tasks=("planted-words",))
    assert claim(words, "The study can tell likeness").verdict == verdict
