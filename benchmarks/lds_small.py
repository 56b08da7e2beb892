"""LDS on scikit-learn's digits: logistic regression and a small network, influence by CG and TRAK against trainings on half the rows.

    python -m benchmarks.lds_small [--json] [--rows 300] [--queries 50] [--subsets 50] [--seeds 2] [--steps 200]

The protocol of the MNIST reference points: half-subsets of the training rows, each trained from the start with several seeds; the score is
the rank correlation, over subsets, of a query's summed scores and its log-probability, in the mean over queries, with the interval over
both subsets and queries. CG solves with the exact Gauss-Newton matrix at four dampings, the default and the training's own weight decay
among them, and the best is shown as such; TRAK-1, TRAK-10 and TRAK-50 are trainings of their own, sketched to 256 numbers. The reference
points are MNIST's, on other rows and other networks: neighbours, not targets. Needs scikit-learn (`pip install -c constraints.txt
scikit-learn`), and no network.

N rows · Q queries · S subsets and seeds · D parameters · K kept numbers of a sketch
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from benchmarks.small import RootRows, Tanh, cross_entropy, query_gradients, rounded, row_gradients, trained_together, typed
from headwater.curvature import CG
from headwater.curvature.damping import RULE
from headwater.evaluate.lds import agreements, matched
from headwater.index.memory import MemoryIndex
from headwater.methods.trak import Trak
from headwater.progress import say
from headwater.truth.objective import SmallModel
from headwater.types import Block, Layout, Member, Scores, Truth, UsageError

PIXELS, CLASSES, HIDDEN, KEPT = 64, 10, 16, 256
DECAY = {"logistic regression": 1e-2, "network": 1e-3}
DAMPINGS = ("1 * mean_eigenvalue", "10 * mean_eigenvalue")
REFERENCE = {
    "logistic regression": {"cg": [0.77, 0.80], "trak_1": 0.41, "trak_10": 0.64, "trak_50": 0.68},
    "network": {"cg": 0.26},
}


@dataclass(frozen=True)
class Size:
    rows: int = 300
    queries: int = 50
    subsets: int = 50
    seeds: int = 2
    steps: int = 200
    ensemble: int = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    result = measure(Size(**{name: value for name, value in given.items() if name != "json"}))
    for model in REFERENCE:
        for name, figure in result[model].items():
            print(f"{model:20} {name:28} {figure}   (MNIST: {REFERENCE[model].get(name.split(',')[0], '-')})")
    if given["json"]:
        record("lds_small", result, typed("lds_small"))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """([1797, 64] pixels between 0 and 1, [1797] digits), shuffled."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("scikit-learn, whose digits this reads, is not installed: pip install -c constraints.txt scikit-learn") from error
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return found.data[order] / 16, found.target[order].astype(np.int64)


def measure(size: Size, *, data: tuple[np.ndarray, np.ndarray] | None = None) -> dict[str, Any]:
    pixels, labels = digits() if data is None else data
    nets = {"logistic regression": Tanh((PIXELS, CLASSES)), "network": Tanh((PIXELS, HIDDEN, CLASSES))}
    found = {name: Task(net, DECAY[name], pixels, labels, size).measured() for name, net in nets.items()}
    return rounded({**found, "reference_mnist": REFERENCE, "size": vars(size)})


@dataclass(frozen=True)
class Task:
    net: Tanh
    decay: float
    pixels: np.ndarray
    labels: np.ndarray
    size: Size

    def measured(self) -> dict[str, Any]:
        truth, models = self.truth(), self.models()
        say(f"{self.net.widths}: trained")
        names = {RULE: "the default"} | {rule: rule for rule in DAMPINGS} | {self.decay: "the weight decay"}
        scores = {f"cg, {name}": self.influence(models[0], damping) for damping, name in names.items()}
        scores |= {f"trak_{n}": self.trak(models[:n]) for n in sorted({1, 10, self.size.ensemble}) if n <= self.size.ensemble}
        scores["random"] = self.scores(np.random.default_rng(0).normal(size=(self.size.queries, self.size.rows)), "random")
        found = {name: agreements(*matched(one, truth))["lds"] for name, one in scores.items()}
        ceiling = next(iter(found.values())).ceiling
        figures = {name: one.spearman.to_json("lds") for name, one in found.items()}
        best = max((name for name in figures if name.startswith("cg")), key=lambda name: figures[name]["lds"])
        figures[best]["best_of_the_dampings"] = True
        return figures | {"ceiling": ceiling.to_json("lds") if ceiling is not None else {"lds": None}}

    # -------------------------------------------------------------------------------------------------------- parts

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.pixels[: self.size.rows]), torch.from_numpy(self.labels[: self.size.rows])

    @property
    def asked(self) -> tuple[Tensor, Tensor]:
        chosen = slice(self.size.rows, self.size.rows + self.size.queries)
        return torch.from_numpy(self.pixels[chosen]), torch.from_numpy(self.labels[chosen])

    def trained(self, kept_SN: np.ndarray, seeds_S: Sequence[Sequence[int]]) -> Tensor:
        return trained_together(self.net, *self.rows, kept_SN, seeds_S, steps=self.size.steps, decay=self.decay)

    def measures(self, theta_D: Tensor) -> Tensor:
        """[Q] log-probabilities of the queries' own classes."""
        x_QI, y_Q = self.asked
        return -cross_entropy(y_Q)(self.net(theta_D, x_QI))

    def truth(self) -> Truth:
        rng = np.random.default_rng(1)
        kept_DN = np.stack([rng.permutation(self.size.rows) < self.size.rows // 2 for _ in range(self.size.subsets)])
        pairs = [(d, s) for d in range(self.size.subsets) for s in range(self.size.seeds)]
        theta_SD = self.trained(kept_DN[[d for d, _ in pairs]], [(2, s) for _, s in pairs])
        outcomes = torch.stack([self.measures(theta_D) for theta_D in theta_SD]).numpy()
        return Truth(
            outcomes_DSQ=outcomes.reshape(self.size.subsets, self.size.seeds, -1),
            kept_DN=kept_DN,
            train_ids=self.train_ids,
            query_ids=self.query_ids,
            seeds=tuple(range(self.size.seeds)),
            kind="cold",
            unit="nats",
            designs=tuple(f"half/{d}" for d in range(self.size.subsets)),
        )

    @property
    def train_ids(self) -> tuple[str, ...]:
        return tuple(f"row-{n}" for n in range(self.size.rows))

    @property
    def query_ids(self) -> tuple[str, ...]:
        return tuple(f"query-{q}" for q in range(self.size.queries))

    def models(self) -> list[SmallModel]:
        """As many as the ensemble has, each on all rows with a seed of its own."""
        (x_NI, y_N), everything = self.rows, np.ones((self.size.ensemble, self.size.rows), dtype=bool)
        theta_SD = self.trained(everything, [(3, m) for m in range(self.size.ensemble)])
        return [SmallModel(lambda t: self.net(t, x_NI), cross_entropy(y_N), self.measures, theta_D, self.decay) for theta_D in theta_SD]

    def influence(self, model: SmallModel, damping: float | str) -> Scores:
        """`- (1/N) grad m (G + damping)^-1 grad L` with CG on the exact Gauss-Newton matrix."""
        source, cg = RootRows.of(model), CG(damping, tolerance=1e-3)
        solved = cg.solve(cg.fit(source), source, query_gradients(model))
        return self.scores((-(solved.value @ row_gradients(model).T) / self.size.rows).numpy(), f"cg, {damping}")

    def scores(self, values_QN: np.ndarray, name: str) -> Scores:
        return Scores(values_QN, self.query_ids, self.train_ids, name, None)

    def trak(self, models: Sequence[SmallModel]) -> Scores:
        others = [self._indexes(model, seed, ((), ())) for seed, model in enumerate(models[1:], 1)]
        members = [[Member(f"seed-{i}", "seed", pair[side]) for i, pair in enumerate(others, 1)] for side in (0, 1)]
        rows, asked = self._indexes(models[0], 0, members)
        return Trak().score(Trak().fit(rows), rows, asked)

    def _indexes(self, model: SmallModel, seed: int, members: Sequence[Sequence[Member]]) -> tuple[MemoryIndex, MemoryIndex]:
        """Rows and queries under one sketch: random signs, kept to 256 numbers."""
        signs = np.random.default_rng((4, seed)).choice([-1.0, 1.0], size=(self.net.size, KEPT)) / KEPT**0.5
        layout = Layout((Block("theta", (self.net.size,), (KEPT,)),), sketch_seed=seed)
        rows_NK, queries_QK = (gradient @ torch.from_numpy(signs) for gradient in (row_gradients(model), query_gradients(model)))
        rows = {"loss": model.losses(model.outputs(model.start_D)).numpy(), "bad": np.zeros(self.size.rows, dtype=bool)}
        asked = {
            "measure": model.measures(model.start_D).numpy(),
            "measure_name": np.array(["response_log_probability"] * self.size.queries, dtype=object),
        }
        return (
            MemoryIndex(self.train_ids, layout, "loss", {"gradient": rows_NK}, rows, members[0]),
            MemoryIndex(self.query_ids, layout, "measure", {"gradient": queries_QK}, asked, members[1]),
        )


if __name__ == "__main__":
    main()
