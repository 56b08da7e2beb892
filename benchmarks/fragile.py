"""How deep a network influence still describes: estimates against training again, by depth and weight decay.

    python -m benchmarks.fragile [--json] [--rule both] [--seeds 4] [--first-seed 0] [--depths 1 2 4 6] [--removals 16] [--kept F]

Three Gaussian classes in the plane, 120 points; a tanh network of width 5 and depth 1, 2, 4 and 6, with and without weight decay. For the
test point of the largest loss, the influence of every row with the exact Hessian plus .001; the 16 rows of largest influence are left
out one by one. Two rules say what training again is, a third with what matrix influence is taken. **Optimum**: training goes on from
the optimum by the rule that the network itself was trained by:

    with decay     to a gradient of 1e-9, by L-BFGS and then Newton steps with the exact Hessian
    without        to a gradient of 1e-5, by L-BFGS alone: where classes overlap the minimum lies at infinity, and Newton steps lead there

Agreement over the removals is Pearson, Spearman and the slope of truth on estimate. A seed is undetermined, and in no mean, where training
did not come to that gradient, or more than a quarter of the trainings without a row did not; where the optimum is a saddle; where the
median effect is below the noise of the rule, which is how far the measure still moves when training on all rows goes on to a tenth of
the gradient. A cell is undetermined where most of its seeds are.

**Equal budget** asks for no end of training: 2,000 steps of gradient descent over all rows (rate .002, momentum .99) from the draw, with
decay and without alike. The truth of a row is a difference after 5,000 further steps from the same weights and momentum: training without
the row less a control on all rows, so that the drift which both share cancels. Influence is as above, at the weights where the further
steps begin. The horizon is the damping's: 5,000 = (1 - momentum) / (damping x rate), so that in a direction without curvature the steps
go about as far as the damped step does. Steps and rate were chosen, before any agreement was computed, by training losses alone (depths 1
to 6, with decay and without, 8 seeds): with momentum .9 the losses of deep networks without decay jump, at rates of .1, .02 and .01; by
this rule none rises by more than about 5e-4 in any step from 500 to 7,000, and those with decay are after 2,000 steps at most about 9 %
above where they are after 7,000. A seed is undetermined at a saddle (an eigenvalue below minus the damping; its figures are kept aside),
where a training is no longer numbers, where the median effect is below the noise, here how far the measure moves when the control's
weights are multiplied by 1 + 1e-12 before the further steps, and where a side does not vary. Whether decay is better is asked of the mean
difference over the seeds where both networks have a figure; undetermined where those are fewer than half.

**Equal budget, Gauss-Newton** is the equal budget in everything but influence: `(G + damping)^-1` in place of the Hessian's, with
`G = (1/N) sum_n J_n' H_n J_n + decay` (J_n: derivative of row n's outputs, H_n: Hessian of its loss in them), damping .001 as before. G has
no negative part, so no network is set aside as a saddle; the other reasons stay. It was declared after the Hessian's figures on seeds 0 to
7 were known, so it is judged on seeds from 8 on: `--rule gauss-newton --first-seed 8`, by the same question of decay, the mean difference
with its 95 % interval over seeds beside it (`gain_by_decay`). Gauss-Newton where training has not ended: Martens 2014 (arXiv 1412.1193),
Bae et al. 2022 (arXiv 2209.05364), Grosse et al. 2023 (arXiv 2308.03296).

Noise between initialisations, for the depths of `--noise`: the spread of an effect over starts against its size, after cold training. Ridge
and softmax regression in the same harness say that the harness is sound. Protocol after Basu, Pope and Feizi 2021 (arXiv 2006.14651).

N rows · Q test points · M removals · D parameters · S starts · R trainings at once
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import RESULTS, record, stamp
from benchmarks.small import (
    Momentum,
    Tanh,
    Underway,
    agreement,
    cross_entropy,
    gauss_newton,
    hessian,
    resumed,
    rounded,
    row_gradients,
    trained_on,
    typed,
    without,
)
from headwater.evaluate.figure import Figure, finite
from headwater.evaluate.seeds import over_seeds
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
EQUAL_BUDGET, GAUSS_NEWTON = "equal budget", "equal budget, Gauss-Newton"
CURVATURES: dict[str, Callable[[SmallModel], Tensor]] = {EQUAL_BUDGET: hessian, GAUSS_NEWTON: gauss_newton}
BUDGETS = {"both": EQUAL_BUDGET, "budget": EQUAL_BUDGET, "gauss-newton": GAUSS_NEWTON}  # of `--rule`
NOISE_REMOVALS = 3
BUDGET = Momentum(rate=0.002, momentum=0.99)
BUDGET_STEPS, FURTHER_STEPS = 2000, 5000  # rate / (1 - momentum) x the further ones = 1 / damping
NUDGE = 1e-12  # of the weights: more than rounding adds to them
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
    parser.add_argument("--rule", choices=("optimum", *BUDGETS), default="both", help="goes into the recorded result, beside the others")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=Size.rows)
    parser.add_argument("--depths", type=int, nargs="+", default=list(Size.depths))
    parser.add_argument("--removals", type=int, default=Size.removals)
    parser.add_argument("--starts", type=int, default=Size.starts, help="other initialisations for the noise")
    parser.add_argument("--noise", type=int, nargs="*", default=list(Size.noise), help="depths whose noise is measured")
    parser.add_argument("--kept", type=Path, help="a file of finished parts, to go on from")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(given.rows, tuple(given.depths), given.removals, given.starts, tuple(given.noise))
    seeds, source, found = range(given.first_seed, given.first_seed + given.seeds), stamp(typed("fragile")), {}
    if given.rule in ("both", "optimum"):
        found |= measure(size, seeds=seeds, kept=given.kept) | source
    if given.rule in BUDGETS:
        title = BUDGETS[given.rule]
        found[title] = by_budget(size, title, seeds=seeds, kept=given.kept) | source
    for title, part in (("optimum", found), *((title, found.get(title, {})) for title in CURVATURES)):
        for name, one in (part.get("cells", {}) | part.get("gain_by_decay", {})).items():
            print(f"{title:26} {name:18} {one}")
    result = joined(recorded() if given.json else {}, found)
    print(f"accepted {result['accepted']}")
    if given.json:
        record("fragile", result, typed("fragile"))


def recorded() -> dict[str, Any]:
    path = RESULTS / "fragile.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def joined(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was found beside what is known of a rule that was not run; each keeps its own command, date and machine."""
    lines = (known.get("accepted", {}), found.get("accepted", {}), *(found.get(title, {}).get("accepted", {}) for title in CURVATURES))
    return {**known, **found, "accepted": {line: word for each in lines for line, word in each.items()}}


def measure(size: Size, *, seeds: Sequence[int], kept: Path | None = None) -> dict[str, Any]:
    names = cell_names(size)
    jobs: dict[str, Callable[[], Any]] = {f"{seed}/{name}": partial(cell, size, seed, name) for name in names for seed in seeds}
    noisy = [cell_name(depth, DECAY) for depth in size.noise]
    jobs |= {f"noise/{seed}/{name}": partial(noise, size, seed, name) for name in noisy for seed in seeds}
    done = resumed(jobs, kept=kept)
    found = {name: [done[f"{seed}/{name}"] for seed in seeds] for name in names}
    cells = {name: summary(found[name]) for name in names}
    floors = {name: [done[f"noise/{seed}/{name}"] for seed in seeds] for name in noisy}
    return rounded({"cells": cells, "noise": floors, "by_seed": found, "expected": EXPECTED, "accepted": accepted(cells)})


def by_budget(size: Size, title: str = EQUAL_BUDGET, *, seeds: Sequence[int], kept: Path | None = None) -> dict[str, Any]:
    """The same cells by a rule of the equal budget, and for each depth what decay changes in Spearman on the same seeds."""
    names, matrix = cell_names(size), CURVATURES[title]
    done = resumed({f"{title}/{s}/{name}": partial(budget_cell, size, s, name, matrix) for name in names for s in seeds}, kept=kept)
    found = {name: [done[f"{title}/{s}/{name}"] for s in seeds] for name in names}
    gains = {f"depth {d}": gain(found[cell_name(d, DECAY)], found[cell_name(d, 0.0)]) for d in size.depths}
    cells = {name: summary(found[name]) for name in names}
    rule = {"steps": BUDGET_STEPS, "further_steps": FURTHER_STEPS, **asdict(BUDGET)}
    return rounded({"rule": rule, "cells": cells, "gain_by_decay": gains, "by_seed": found, "accepted": accepted_by_budget(gains, title)})


def cell_names(size: Size) -> list[str]:
    return ["ridge", "softmax regression", *(cell_name(depth, decay) for decay in (DECAY, 0.0) for depth in size.depths)]


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds where there is a figure; beside them how many, and why the others have none. No mean where most have none."""
    known = [one["agreement"] for one in found if one["agreement"]]
    return {
        **{name: float(np.mean([one[name] for one in known])) if 2 * len(known) >= len(found) else None for name in FIGURES},
        **{f"{name}_by_seed": [one["agreement"][name] if one["agreement"] else "undetermined" for one in found] for name in FIGURES},
        "seeds": len(known),
        "undetermined": [one["undetermined"] for one in found if not one["agreement"]],
        **{name: middle([one[name] for one in found]) for name in ("lam_min", "lam_max")},
    }


def middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


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


def gain(with_decay: Sequence[dict[str, Any]], without_decay: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Spearman with decay less without, seed by seed, over the seeds where both have a figure."""
    pairs = [(a["agreement"], b["agreement"]) for a, b in zip(with_decay, without_decay, strict=True)]
    gains = [a["spearman"] - b["spearman"] if a and b else None for a, b in pairs]
    known = [one for one in gains if one is not None]
    mean = over_seeds([Figure(one, None, 1, "removals") for one in known])
    enough = 0 < len(gains) <= 2 * len(known)
    return {
        "mean": mean.value if enough else None,
        "interval": mean.interval if enough else None,
        "by_seed": ["undetermined" if one is None else one for one in gains],
        "seeds": len(known),
    }


def accepted_by_budget(gains: dict[str, Any], title: str = EQUAL_BUDGET) -> dict[str, str]:
    def line(mean: float | None) -> str:
        return "undetermined" if mean is None else "reached" if mean >= 0 else "missed"

    return {f"decay better at depth {d} ({title})": line(gains.get(f"depth {d}", {"mean": None})["mean"]) for d in (2, 4)}


def cell_name(depth: int, decay: float) -> str:
    return f"depth {depth}{', decay' if decay else ''}"


def cell(size: Size, seed: int, name: str) -> dict[str, Any]:
    return judged(named_model(size, seed, name), size)


def budget_cell(size: Size, seed: int, name: str, curvature: Callable[[SmallModel], Tensor]) -> dict[str, Any]:
    return judged_by_budget(named_model(size, seed, name), size, curvature)


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
        return Judged.at(model, all_rows(model, training(model)))

    @staticmethod
    def at(model: SmallModel, reached: Reached, curvature: Callable[[SmallModel], Tensor] = hessian) -> Judged:
        worst = int(model.measures(reached.theta_D).argmax())
        one = replace(model, start_D=reached.theta_D, queries=lambda theta_D: model.queries(theta_D)[worst : worst + 1])
        matrix_DD = curvature(one)
        return Judged(one, reached, torch.linalg.eigvalsh(matrix_DD), predicted(one, matrix_DD))

    def strongest(self, n: int) -> np.ndarray:
        return np.argsort(-np.abs(self.influence_N))[:n]

    @property
    def before(self) -> float:
        return float(self.model.measures(self.model.start_D)[0])

    def health(self) -> dict[str, float]:
        every_N = torch.ones(len(self.model.train_ids), dtype=torch.float64)
        return {
            "gradient": self.reached.gradient_norm,
            "lam_min": float(self.lam_D[0]),
            "lam_max": float(self.lam_D[-1]),
            "worst_loss": self.before,
            "mean_loss": float(self.model.loss(self.model.start_D, every_N)[0]),
        }

    def still_moves(self) -> float:
        """The noise of the rule: the measure's change when training on all rows goes on to a tenth of the gradient."""
        finer = all_rows(self.model, training(self.model, share=FINER))
        return abs(float(self.model.measures(finer.theta_D)[0]) - self.before)


def judged(model: SmallModel, size: Size) -> dict[str, Any]:
    """Influence on the worst test point against training again; a reason in place of the figures where there is none."""
    one = Judged.of(model)
    health = one.health()
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


def judged_by_budget(model: SmallModel, size: Size, curvature: Callable[[SmallModel], Tensor] = hessian) -> dict[str, Any]:
    """The same by the rule of the equal budget, influence with either matrix; `lam_min` and `lam_max` are those of that matrix."""
    first = trained_on(model, np.ones((1, size.rows), dtype=bool), Underway.at_rest(model.start_D), BUDGET, steps=BUDGET_STEPS)
    reached = stopped(model, first.theta_RD[0])
    if not reached.usable:
        return {"agreement": None, "undetermined": "the training is no longer numbers", "lam_min": None, "lam_max": None}
    one = Judged.at(model, reached, curvature)
    chosen = one.strongest(size.removals)
    changes_M, drift, noise = further(one, first, chosen)
    figures = agreement(one.influence_N[chosen], changes_M)
    reason = saddle(float(one.lam_D[0])) or lost(changes_M) or still(changes_M, noise) or ("" if figures else "a side does not vary")
    return one.health() | {
        "agreement": None if reason else figures,
        "undetermined": reason or None,
        "kept_aside": figures if reason else None,
        "removals": len(changes_M),
        "median_effect": middle([abs(float(change)) for change in changes_M if np.isfinite(change)]),
        "drift": finite(drift),
        "noise_of_the_rule": finite(noise),
    }


def stopped(model: SmallModel, theta_D: Tensor) -> Reached:
    gradient_D = model.loss(theta_D, torch.ones(len(model.train_ids), dtype=torch.float64))[1] + model.decay * theta_D
    norm = float(gradient_D.norm())
    return Reached(theta_D, "ran" if np.isfinite(norm) else "diverged", norm, None, BUDGET_STEPS + 1)


class Further(NamedTuple):
    """What further steps move the measure by: without each row [M], less the control; the control; a nudge of the control."""

    changes_M: np.ndarray
    drift: float
    noise: float


def further(one: Judged, at: Underway, removed_M: np.ndarray) -> Further:
    """All trainings together: the control on all rows, the control from weights that rounding might have led to, each without a row."""
    n_rows = len(one.model.train_ids)
    kept_RN = np.concatenate([np.ones((2, n_rows), dtype=bool), without(n_rows, removed_M)])
    last = trained_on(one.model, kept_RN, nudged(at.copies(len(kept_RN)), 1), BUDGET, steps=FURTHER_STEPS)
    control, control_nudged, *gone_M = (float(one.model.measures(theta_D)[0]) for theta_D in last.theta_RD)
    return Further(np.array(gone_M) - control, control - one.before, abs(control_nudged - control))


def nudged(at: Underway, r: int) -> Underway:
    """Training r of them moved by what rounding might have moved it."""
    factor_R = torch.ones(len(at.theta_RD), dtype=torch.float64)
    factor_R[r] += NUDGE
    return replace(at, theta_RD=at.theta_RD * factor_R[:, None])


def lost(changes_M: np.ndarray) -> str:
    """Whether a training is no longer numbers; "" where all are."""
    n = int((~np.isfinite(changes_M)).sum())
    return f"{n} of {len(changes_M)} trainings without a row are no longer numbers" if n else ""


def no_end(reached: Reached) -> str:
    """Why a network is no optimum; "" where it is one."""
    if reached.usable:
        return ""
    return f"training ended at a gradient of {reached.gradient_norm:.2g}, the rule asks for {reached.tolerance:g}"


def saddle(lam_min: float) -> str:
    return f"the network is at a saddle: smallest eigenvalue {lam_min:.3g}" if lam_min < -DAMPING else ""


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
    """[N] `+ (1/N) grad m (H + damping)^-1 grad L_n`, H either matrix: how the one query's measure changes when row n is removed."""
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
