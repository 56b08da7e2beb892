"""How deep a network influence still describes: estimates against training again, by depth and weight decay.

    python -m benchmarks.fragile [--json] [--seeds 4] [--depths 1 2 4 6] [--removals 16] [--starts 1] [--kept F]

Three Gaussian classes in the plane, 120 points; a tanh network of width 5 and depth 1, 2, 4 and 6, with and without weight decay, is
trained by L-BFGS until its gradient is below 1e-9. For the test point of the largest loss, the influence of every row with the exact
Hessian plus .001; the 16 rows of largest influence are left out one by one, and training goes on from the optimum to as small a gradient.
Agreement over the 16 is Pearson, Spearman and the slope of truth on estimate. It is undetermined, and in no mean, where a training did not
reach its end (in 5,000 steps, 300 without decay), the optimum is a saddle, or nothing moved. Where the trainings did not reach their end,
what they reached is compared all the same, as the literature does, under "stopped". Noise: removals of the strongest rows after other
initialisations, the spread of an effect over its size. Ridge and softmax regression in the same harness say that the harness is sound.
Protocol after Basu, Pope and Feizi 2021 (arXiv 2006.14651).

N rows · Q test points · M removals · D parameters · S starts
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from benchmarks.small import Tanh, agreement, at_minimum, constant, cross_entropy, hessian, resumed, rounded, row_gradients, typed, without
from headwater.truth.objective import SmallModel
from headwater.truth.optimum import LBFGS, Reached, Smooth
from headwater.truth.response import retrained
from headwater.types import Truth

INPUTS, CLASSES, WIDTH, TEST_POINTS = 2, 3, 5, 60
DAMPING, DECAY = 1e-3, 5e-3
GRADIENT, STEPS, STEPS_WITHOUT_DECAY = 1e-9, 5000, 300
SPREAD = 2.0  # of the classes' centres, in standard deviations of a class
LEAST_EFFECT = 1e-9
FIGURES = ("spearman", "pearson", "slope")
NOISE_REMOVALS = 3
EXPECTED = {
    "depth 1, decay": [0.95, 0.70], "depth 1": [0.89, 0.87], "depth 2, decay": [0.90, 0.93], "depth 2": [0.71, 0.83],
    "depth 4, decay": [0.78, 0.89], "depth 4": [0.61, None], "depth 6, decay": [0.66, 0.60],
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    rows: int = 120
    depths: tuple[int, ...] = (1, 2, 4, 6)
    removals: int = 16
    starts: int = 1


@dataclass(frozen=True)
class Data:
    x_NI: Tensor
    y_N: Tensor
    test_QI: Tensor
    test_y_Q: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=Size.rows)
    parser.add_argument("--depths", type=int, nargs="+", default=list(Size.depths))
    parser.add_argument("--removals", type=int, default=Size.removals)
    parser.add_argument("--starts", type=int, default=Size.starts, help="other initialisations for the noise, on the first seed")
    parser.add_argument("--kept", type=Path, help="a file of finished parts, to go on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(Size(given.rows, tuple(given.depths), given.removals, given.starts), seeds=range(given.seeds), kept=given.kept)
    for name, cell in result["cells"].items():
        print(f"{name:18} {cell}")
    print(f"accepted           {result['accepted']}")
    if given.json:
        record("fragile", result, typed("fragile"))


def measure(size: Size, *, seeds: Sequence[int], kept: Path | None = None) -> dict[str, Any]:
    names = ["ridge", "softmax regression", *(cell_name(depth, decay) for decay in (DECAY, 0.0) for depth in size.depths)]
    jobs: dict[str, Callable[[], Any]] = {f"{seed}/{name}": partial(cell, size, seed, name) for name in names for seed in seeds}
    jobs |= {f"noise/{name}": partial(noise, size, min(seeds), name) for name in names if name.endswith(", decay")}
    done = resumed(jobs, kept=kept)
    found = {name: [done[f"{seed}/{name}"] for seed in seeds] for name in names}
    cells = {name: summary(found[name]) | {"noise": done.get(f"noise/{name}")} for name in names}
    return rounded({"cells": cells, "by_seed": found, "expected": EXPECTED, "accepted": accepted(cells)})


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds where there is a figure; beside them how many, and why the others have none."""
    known, stopped = ([one[name] for one in found if one[name] is not None] for name in ("agreement", "stopped"))
    return {
        **means(known),
        "spearman_by_seed": [one["agreement"]["spearman"] if one["agreement"] else "undetermined" for one in found],
        "seeds": len(known),
        "undetermined": [one["undetermined"] for one in found if one["agreement"] is None],
        "stopped": {**means(stopped), "seeds": len(stopped)},
        "lam_min": float(np.median([one["lam_min"] for one in found])),
        "lam_max": float(np.median([one["lam_max"] for one in found])),
    }


def means(found: Sequence[dict[str, float]]) -> dict[str, float | None]:
    return {name: float(np.mean([one[name] for one in found])) if found else None for name in FIGURES}


def accepted(cells: dict[str, Any]) -> dict[str, bool | str]:
    """What was asked for; "undetermined" where a cell has no figure. The stopped trainings' figure is named so."""

    def compare(check: Callable[..., bool], *names: str) -> bool | str:
        figures = [cells[name]["spearman"] if name in cells else None for name in names]
        if None not in figures:
            return bool(check(*figures))
        loose = [cells[name]["spearman"] or cells[name]["stopped"]["spearman"] if name in cells else None for name in names]
        return "undetermined" if None in loose else f"undetermined; by stopped trainings {bool(check(*loose))}"

    return {
        "depth 1 with decay >= .75": compare(lambda one: one >= 0.75, "depth 1, decay"),
        "depth 6 at least .15 lower": compare(lambda one, six: six <= one - 0.15, "depth 1, decay", "depth 6, decay"),
        "decay better at depth 2": compare(lambda a, b: a >= b, "depth 2, decay", "depth 2"),
        "decay better at depth 4": compare(lambda a, b: a >= b, "depth 4, decay", "depth 4"),
        "ridge > .95": compare(lambda one: one > 0.95, "ridge"),
        "softmax regression > .95": compare(lambda one: one > 0.95, "softmax regression"),
    }


def cell_name(depth: int, decay: float) -> str:
    return f"depth {depth}{', decay' if decay else ''}"


def cell(size: Size, seed: int, name: str) -> dict[str, Any]:
    return judged(named_model(size, seed, name), size)


def noise(size: Size, seed: int, name: str) -> dict[str, Any]:
    model, depth = named_model(size, seed, name), int(name.removeprefix("depth ").split(",")[0])
    return noise_floor(model, size, [Tanh(widths(depth)).drawn((seed, depth, 1 + s)) for s in range(size.starts)])


def named_model(size: Size, seed: int, name: str) -> SmallModel:
    data = drawn(size, seed)
    if name == "ridge":
        return ridge(data, seed)
    if name == "softmax regression":
        return network(data, 0, DECAY, seed)
    return network(data, int(name.removeprefix("depth ").split(",")[0]), DECAY if name.endswith("decay") else 0.0, seed)


# ------------------------------------------------------------------------------------------------- models and their data


def drawn(size: Size, seed: int) -> Data:
    """Three classes that overlap a little: some rows lie on the wrong side."""
    rng = np.random.default_rng((seed, 0))
    centres = SPREAD * rng.normal(size=(CLASSES, INPUTS))
    y, test_y = (np.arange(n) % CLASSES for n in (size.rows, TEST_POINTS))
    x, test = (centres[labels] + rng.normal(size=(len(labels), INPUTS)) for labels in (y, test_y))
    return Data(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test), torch.from_numpy(test_y))


def widths(depth: int) -> tuple[int, ...]:
    return (INPUTS, *[WIDTH] * depth, CLASSES)


def network(data: Data, depth: int, decay: float, seed: int) -> SmallModel:
    """Not trained yet. Depth 0 is softmax regression. The measure is the loss of a test point."""
    net = Tanh(widths(depth))
    return SmallModel(
        lambda t: net(t, data.x_NI), cross_entropy(data.y_N), lambda t: cross_entropy(data.test_y_Q)(net(t, data.test_QI)),
        net.drawn((seed, depth, 0)), decay=decay,
    )  # fmt: skip


def ridge(data: Data, seed: int) -> SmallModel:
    """Class against the others as a number, squared loss."""
    targets_N, tests_Q = ((labels == 0).double() for labels in (data.y_N, data.test_y_Q))
    return SmallModel(
        lambda t: (data.x_NI @ t)[:, None], lambda o_NO: (o_NO[:, 0] - targets_N).square() / 2,
        lambda t: (data.test_QI @ t - tests_Q).square() / 2, Tanh((INPUTS, 1)).drawn((seed, 9))[:INPUTS].clone(), decay=DECAY,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ judgement


@dataclass(frozen=True)
class Stopped:
    """L-BFGS that counts as training wherever it is after its steps. The record keeps the gradient norm that it ended at."""

    steps: int

    def __call__(self, fn: Smooth, start_D: Tensor) -> Reached:
        reached = LBFGS(relative=0, absolute=GRADIENT, max_steps=self.steps, memory=60)(fn, start_D)
        return replace(reached, status="ran") if reached.status == "max_steps" else reached


def training(model: SmallModel) -> Stopped:
    """Without decay most networks never come to an end: more steps would only take longer."""
    return Stopped(STEPS if model.decay else STEPS_WITHOUT_DECAY)


@dataclass(frozen=True, eq=False)
class Judged:
    """A trained network, the test point of the largest loss as its one query, and what influence says of every row."""

    model: SmallModel
    lam_D: Tensor
    influence_N: np.ndarray

    @staticmethod
    def of(model: SmallModel) -> Judged:
        trained = at_minimum(model, training(model))
        worst = int(trained.measures(trained.start_D).argmax())
        one = replace(trained, queries=lambda theta_D: model.queries(theta_D)[worst : worst + 1])
        matrix_DD = hessian(one)
        return Judged(one, torch.linalg.eigvalsh(matrix_DD), predicted(one, matrix_DD))

    def strongest(self, n: int) -> np.ndarray:
        return np.argsort(-np.abs(self.influence_N))[:n]


def judged(model: SmallModel, size: Size) -> dict[str, Any]:
    """Influence on the worst test point against training again; a reason in place of the figures where there is none."""
    one = Judged.of(model)
    chosen = one.strongest(size.removals)
    truth = retrained(one.model, without(size.rows, chosen), training(model))
    before, lam_min = float(one.model.measures(one.model.start_D)[0]), float(one.lam_D[0])
    changes_M, predicted_M = truth.outcomes_DSQ[:, 0, 0] - before, one.influence_N[chosen]
    found, late = agreement(predicted_M, changes_M), unfinished(one.model, truth)
    reason = late or still(changes_M, predicted_M, lam_min)
    return {
        "agreement": None if reason else found,
        "undetermined": reason or (None if found else "a side does not vary"),
        "stopped": found if late and np.abs(changes_M).max() > LEAST_EFFECT else None,
        "lam_min": lam_min,
        "lam_max": float(one.lam_D[-1]),
        "median_effect": float(np.median(np.abs(changes_M))),
        "worst_loss": before,
        "mean_loss": float(one.model.loss(one.model.start_D, torch.ones(size.rows, dtype=torch.float64))[0]),
    }


def unfinished(trained: SmallModel, truth: Truth) -> str:
    """Which trainings did not come down to the gradient that was asked for; "" where all did."""
    norms = [end["gradient_norm"] for end in truth.recipe["optimisations"]]
    base = gradient_norm(trained)
    late = sum(not norm <= GRADIENT for norm in norms)
    if base > GRADIENT or late:
        return f"gradient {base:.1g} after training, and above {GRADIENT:g} after {late} of {len(norms)} trainings without a row"
    return ""


def gradient_norm(trained: SmallModel) -> float:
    everything_N = torch.ones(len(trained.train_ids), dtype=torch.float64)
    return float((trained.loss(trained.start_D, everything_N)[1] + trained.decay * trained.start_D).norm())


def still(changes_M: np.ndarray, predicted_M: np.ndarray, lam_min: float) -> str:
    """Why finished trainings say nothing; "" where they do."""
    if lam_min < -DAMPING:
        return f"the optimum is a saddle: smallest eigenvalue {lam_min:.3g}"
    if constant(changes_M) or constant(predicted_M) or np.abs(changes_M).max() < LEAST_EFFECT:
        return f"nothing moved: the largest effect is {np.abs(changes_M).max():.3g}"
    return ""


def predicted(model: SmallModel, matrix_DD: Tensor) -> np.ndarray:
    """[N] `+ (1/N) grad m (H + damping)^-1 grad L_n`: how the one query's measure changes when row n is removed."""
    damped_DD = matrix_DD + DAMPING * torch.eye(len(matrix_DD), dtype=torch.float64)
    slope_D = torch.func.jacrev(model.queries)(model.start_D)[0]
    return (row_gradients(model) @ torch.linalg.solve(damped_DD, slope_D)).numpy() / len(model.train_ids)


def noise_floor(model: SmallModel, size: Size, starts: Sequence[Tensor]) -> dict[str, Any]:
    """How far an effect differs between initialisations: its standard deviation over starts, over the median size of an effect.

    Signal-to-noise below 2 says that training again is no truth to judge by, unless it goes on from the same optimum.
    """
    one = Judged.of(model)
    gone_MN = without(size.rows, one.strongest(min(NOISE_REMOVALS, size.removals)))
    kept_MN = np.concatenate([np.ones((1, size.rows), dtype=bool), gone_MN])
    outcomes_MS = retrained(one.model, kept_MN, training(model), starts=[model.start_D, *starts]).outcomes_DSQ[:, :, 0]
    effects_MS = outcomes_MS[1:] - outcomes_MS[:1]
    spread, typical = float(np.mean(effects_MS.std(1, ddof=1))), float(np.median(np.abs(effects_MS)))
    return {"signal_to_noise": typical / spread, "spread": spread, "effect": typical, "starts": effects_MS.shape[1]}


if __name__ == "__main__":
    main()
