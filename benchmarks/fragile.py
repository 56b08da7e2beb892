"""How deep a network influence still describes: estimates against training again, by depth and weight decay.

    python -m benchmarks.fragile [--json] [--seeds 4] [--depths 1 2 4 6] [--noise 1 2] [--removals 16] [--starts 1] [--kept F]

Three Gaussian classes in the plane, 120 points; a tanh network of width 5 and depth 1, 2, 4 and 6, with and without weight decay. For the
test point of the largest loss, the influence of every row with the exact Hessian plus .001; the 16 rows of largest influence are left
out one by one, and training goes on from the optimum by the rule that the network itself was trained by:

    with decay     to a gradient of 1e-9, by L-BFGS and then Newton steps with the exact Hessian
    without        to a gradient of 1e-5, by L-BFGS alone: where classes overlap the minimum lies at infinity, and Newton steps lead there

Agreement over the removals is Pearson, Spearman and the slope of truth on estimate. A seed is undetermined, and in no mean, where training
did not come to that gradient, or more than a quarter of the trainings without a row did not; where the optimum is a saddle; where the
median effect is below the noise of the rule, which is how far the measure still moves when training on all rows goes on to a tenth of
the gradient. A cell is undetermined where most of its seeds are. Noise between initialisations, for the depths of `--noise`: the spread of
an effect over starts against its size, after cold training. Ridge and softmax regression in the same harness say that the harness is
sound. Protocol after Basu, Pope and Feizi 2021 (arXiv 2006.14651).

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
from benchmarks.small import Tanh, agreement, cross_entropy, hessian, resumed, rounded, row_gradients, typed, without
from headwater.truth.objective import SmallModel
from headwater.truth.optimum import LBFGS, Minimiser, Newton, Reached
from headwater.truth.response import retrained, training_loss
from headwater.types import Truth

INPUTS, CLASSES, WIDTH, TEST_POINTS = 2, 3, 5, 60
DAMPING, DECAY = 1e-3, 5e-3
GRADIENT, GRADIENT_WITHOUT_DECAY = 1e-9, 1e-5
STEPS, NEWTON_STEPS, MEMORY = 3000, 500, 60
FINER = 0.1  # of the gradient: what the measure still moves to there is the noise of the rule
UNREACHED = 0.25  # of the removals: with more than that no figure
SPREAD = 2.0  # of the classes' centres, in standard deviations of a class
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
    noise: tuple[int, ...] = (1, 2)


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
    parser.add_argument("--starts", type=int, default=Size.starts, help="other initialisations for the noise")
    parser.add_argument("--noise", type=int, nargs="*", default=list(Size.noise), help="depths whose noise is measured")
    parser.add_argument("--kept", type=Path, help="a file of finished parts, to go on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(given.rows, tuple(given.depths), given.removals, given.starts, tuple(given.noise))
    result = measure(size, seeds=range(given.seeds), kept=given.kept)
    for name, cell in result["cells"].items():
        print(f"{name:18} {cell}")
    print(f"accepted           {result['accepted']}")
    if given.json:
        record("fragile", result, typed("fragile"))


def measure(size: Size, *, seeds: Sequence[int], kept: Path | None = None) -> dict[str, Any]:
    names = ["ridge", "softmax regression", *(cell_name(depth, decay) for decay in (DECAY, 0.0) for depth in size.depths)]
    jobs: dict[str, Callable[[], Any]] = {f"{seed}/{name}": partial(cell, size, seed, name) for name in names for seed in seeds}
    noisy = [cell_name(depth, DECAY) for depth in size.noise]
    jobs |= {f"noise/{seed}/{name}": partial(noise, size, seed, name) for name in noisy for seed in seeds}
    done = resumed(jobs, kept=kept)
    found = {name: [done[f"{seed}/{name}"] for seed in seeds] for name in names}
    cells = {name: summary(found[name]) for name in names}
    floors = {name: [done[f"noise/{seed}/{name}"] for seed in seeds] for name in noisy}
    return rounded({"cells": cells, "noise": floors, "by_seed": found, "expected": EXPECTED, "accepted": accepted(cells)})


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds where there is a figure; beside them how many, and why the others have none. No mean where most have none."""
    known = [one["agreement"] for one in found if one["agreement"]]
    return {
        **{name: float(np.mean([one[name] for one in known])) if 2 * len(known) >= len(found) else None for name in FIGURES},
        **{f"{name}_by_seed": [one["agreement"][name] if one["agreement"] else "undetermined" for one in found] for name in FIGURES},
        "seeds": len(known),
        "undetermined": [one["undetermined"] for one in found if not one["agreement"]],
        "lam_min": float(np.median([one["lam_min"] for one in found])),
        "lam_max": float(np.median([one["lam_max"] for one in found])),
    }


def accepted(cells: dict[str, Any]) -> dict[str, str]:
    """Of each line that was asked for: reached, missed, or undetermined where a cell has no figure or was not asked for."""

    def compare(check: Callable[..., bool], *names: str) -> str:
        figures = [cells[name]["spearman"] if name in cells else None for name in names]
        return "undetermined" if None in figures else "reached" if check(*figures) else "missed"

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


def training(model: SmallModel, *, share: float = 1.0) -> Minimiser:
    """The rule of a network with decay or without, to a `share` of its gradient."""
    if not model.decay:
        return LBFGS(relative=0, absolute=share * GRADIENT_WITHOUT_DECAY, max_steps=STEPS, memory=MEMORY)
    near = LBFGS(relative=1e-3, absolute=share * GRADIENT, max_steps=STEPS, memory=MEMORY)
    return Newton(relative=0, absolute=share * GRADIENT, max_steps=NEWTON_STEPS, first=near)


def all_rows(model: SmallModel, minimise: Minimiser) -> Reached:
    return minimise(training_loss(model, torch.ones(len(model.train_ids), dtype=torch.float64)), model.start_D)


@dataclass(frozen=True, eq=False)
class Judged:
    """A network where training ended, the test point of the largest loss as its one query, and what influence says of every row."""

    model: SmallModel
    reached: Reached
    lam_D: Tensor
    influence_N: np.ndarray

    @staticmethod
    def of(model: SmallModel) -> Judged:
        reached = all_rows(model, training(model))
        worst = int(model.measures(reached.theta_D).argmax())
        one = replace(model, start_D=reached.theta_D, queries=lambda theta_D: model.queries(theta_D)[worst : worst + 1])
        matrix_DD = hessian(one)
        return Judged(one, reached, torch.linalg.eigvalsh(matrix_DD), predicted(one, matrix_DD))

    def strongest(self, n: int) -> np.ndarray:
        return np.argsort(-np.abs(self.influence_N))[:n]

    @property
    def before(self) -> float:
        return float(self.model.measures(self.model.start_D)[0])

    def still_moves(self) -> float:
        """The noise of the rule: the measure's change when training on all rows goes on to a tenth of the gradient."""
        finer = all_rows(self.model, training(self.model, share=FINER))
        return abs(float(self.model.measures(finer.theta_D)[0]) - self.before)


def judged(model: SmallModel, size: Size) -> dict[str, Any]:
    """Influence on the worst test point against training again; a reason in place of the figures where there is none."""
    one = Judged.of(model)
    health = {
        "gradient": one.reached.gradient_norm,
        "lam_min": float(one.lam_D[0]),
        "lam_max": float(one.lam_D[-1]),
        "worst_loss": one.before,
        "mean_loss": float(one.model.loss(one.model.start_D, torch.ones(size.rows, dtype=torch.float64))[0]),
    }
    reason = no_end(one.reached) or saddle(health["lam_min"])
    return health | ({"agreement": None, "undetermined": reason} if reason else compared(one, size))


def compared(one: Judged, size: Size) -> dict[str, Any]:
    chosen = one.strongest(size.removals)
    truth = retrained(one.model, without(size.rows, chosen), training(one.model))
    changes_M, noise = truth.outcomes_DSQ[:, 0, 0] - one.before, one.still_moves()
    reached_M = np.isfinite(changes_M)
    found = agreement(one.influence_N[chosen][reached_M], changes_M[reached_M])
    reason = late(truth) or still(changes_M[reached_M], noise) or ("" if found else "a side does not vary")
    return {
        "agreement": None if reason else found,
        "undetermined": reason or None,
        "removals": int(reached_M.sum()),
        "median_effect": float(np.median(np.abs(changes_M[reached_M]))) if reached_M.any() else None,
        "noise_of_the_rule": noise,
    }


def no_end(reached: Reached) -> str:
    """Why a network is no optimum; "" where it is one."""
    if reached.usable:
        return ""
    return f"training ended at a gradient of {reached.gradient_norm:.2g}, the rule asks for {reached.tolerance:g}"


def saddle(lam_min: float) -> str:
    return f"the optimum is a saddle: smallest eigenvalue {lam_min:.3g}" if lam_min < -DAMPING else ""


def late(truth: Truth) -> str:
    """Whether too many trainings without a row did not come to the gradient of the rule; "" where few or none."""
    ends = truth.recipe["optimisations"]
    short = [end["gradient_norm"] for end in ends if end["status"] != "converged"]
    if len(short) <= UNREACHED * len(ends):
        return ""
    return f"{len(short)} of {len(ends)} trainings without a row did not end: median gradient {np.median(short):.2g}"


def still(changes_M: np.ndarray, noise: float) -> str:
    """Whether what training again moved is less than what the rule leaves open; "" where it is more."""
    typical = float(np.median(np.abs(changes_M)))
    return "" if typical > noise else f"the median effect {typical:.2g} is below the noise of the rule, {noise:.2g}"


def predicted(model: SmallModel, matrix_DD: Tensor) -> np.ndarray:
    """[N] `+ (1/N) grad m (H + damping)^-1 grad L_n`: how the one query's measure changes when row n is removed."""
    damped_DD = matrix_DD + DAMPING * torch.eye(len(matrix_DD), dtype=torch.float64)
    slope_D = torch.func.jacrev(model.queries)(model.start_D)[0]
    return (row_gradients(model) @ torch.linalg.solve(damped_DD, slope_D)).numpy() / len(model.train_ids)


def noise_floor(model: SmallModel, size: Size, starts: Sequence[Tensor]) -> dict[str, Any]:
    """How far an effect differs between initialisations: its standard deviation over starts, over the median size of an effect.

    Signal-to-noise below 2 says that training again is no truth to judge by, unless it goes on from the same optimum. None where a training
    did not end.
    """
    one = Judged.of(model)
    gone_MN = without(size.rows, one.strongest(min(NOISE_REMOVALS, size.removals)))
    kept_MN = np.concatenate([np.ones((1, size.rows), dtype=bool), gone_MN])
    outcomes_MS = retrained(one.model, kept_MN, training(model), starts=[model.start_D, *starts]).outcomes_DSQ[:, :, 0]
    short = int((~np.isfinite(outcomes_MS)).sum())
    if short:
        return {"signal_to_noise": None, "trainings that did not end": short, "starts": outcomes_MS.shape[1]}
    effects_MS = outcomes_MS[1:] - outcomes_MS[:1]
    spread, typical = float(np.mean(effects_MS.std(1, ddof=1))), float(np.median(np.abs(effects_MS)))
    return {"signal_to_noise": typical / spread, "spread": spread, "effect": typical, "starts": effects_MS.shape[1]}


if __name__ == "__main__":
    main()
