"""Does influence find a dataset's artefact? Synthetic inference pairs whose label an overlap of words gives away, or does not.

    python -m benchmarks.artefacts [--json] [--small] [--seeds 8] [--rows 600] [--steps 200] [--retrainings 5] [--kept F]

A premise has a key and words, a hypothesis a value and words; the pair is true where the value is the key's own. In the artefact world
the hypothesis takes all its words from the premise for 97 % of the true pairs and 3 % of the false ones, in the clean world for half of
each. A one-block transformer of width 16 learns 600 pairs. Queries are new pairs that are false, with full overlap, and on which the
model is FOOLED: what is explained is its decision, the log-probability of "true". Influence is exact: the Gauss-Newton matrix plus .001.

Then the property "overlap" against influence, by the functions of the audit's own check: the coefficient a of the parabola over the ranks
(a U: rows that matter either way have more overlap), and how much more of it the highest tenth has. Beside it the same over queries that
are not fooled, which says why they must be left out, and under the length of the rows' gradients alone. Removal, in the artefact world: the
tenth of the rows with the highest mean score against a random tenth, trained again from new starts, and how far the probability of the
decision falls: undetermined where seeds do not tell the two apart by two standard errors. Protocol after Han, Wallace and Tsvetkov 2020
(arXiv 2005.06676); the binning and the world are ours.

N rows · Q queries · T positions · H width · D parameters · S trainings
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import record
from benchmarks.small import RootRows, resumed, rounded, trained_together, typed
from headwater.audit.artefacts import Artefact, artefact
from headwater.curvature import Fisher
from headwater.evaluate.noise import ENOUGH, noise_floor
from headwater.types import Block, Layout

WORLDS = {"artefact": (0.97, 0.03), "clean": (0.5, 0.5)}  # share of true, of false pairs with full overlap
KEYS, WORDS, WORDS_EACH = 4, 10, 3
SMALL_WORDS = 0.3  # standard deviation of embeddings at the start: what is common to words is then learned before they are memorised
BY_CHANCE = 0.18  # of a hypothesis word to be one of the premise, where the overlap is not full
DAMPING = 1e-3
CANDIDATES, MOST_QUERIES, FEWEST_QUERIES = 400, 30, 3
A_AT_LEAST, A_AT_MOST, MORE_AT_LEAST, MORE_AT_MOST = 0.10, 0.05, 0.08, 0.03
REMOVED = 0.1
EXPECTED = {"a": {"artefact": [0.12, 0.33, 0.58, 0.00], "clean": [0.02, -0.01, -0.04, 0.02]},
            "top tenth": {"artefact": [0.68, 0.78, 0.86, 0.64], "clean": [0.57, 0.61], "mean": [0.59, 0.60]}}  # fmt: skip


@dataclass(frozen=True)
class Size:
    rows: int = 600
    steps: int = 200
    retrainings: int = 5


SMALL = Size(rows=80, steps=30, retrainings=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--small", action="store_true", help="a size that takes seconds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--kept", type=Path, help="a file of finished parts, to go on from")
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = SMALL if given.small else Size(given.rows, given.steps, given.retrainings)
    result = measure(size, seeds=range(given.seeds), kept=given.kept)
    for name in ("artefact", "clean", "accepted"):
        print(f"{name:10} {result[name]}")
    if given.json:
        record("artefacts", result, typed("artefacts"))


def measure(size: Size, *, seeds: Sequence[int], kept: Path | None = None) -> dict[str, Any]:
    jobs: dict[str, Callable[[], Any]] = {f"{world}/{seed}": partial(studied, size, world, seed) for world in WORLDS for seed in seeds}
    done = resumed(jobs, kept=kept)
    by_seed = {world: [done[f"{world}/{seed}"] for seed in seeds] for world in WORLDS}
    means = {world: summary(found) for world, found in by_seed.items()}
    return rounded({**means, "by_seed": by_seed, "expected": EXPECTED, "size": vars(size), "accepted": accepted(means)})


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds that have a figure, with how many these are, and each seed's own."""
    known = {name: [one[name] for one in found if one.get(name) is not None] for name in FIGURES}
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    errors = {f"{name}_se": float(np.std(v, ddof=1) / len(v) ** 0.5) if len(v) > 1 else None for name, v in known.items()}
    return {**means, **errors, "seeds": len(known["a"]), "a_by_seed": [one.get("a") for one in found], **removal_summary(found)}


FIGURES = ("a", "enrichment", "follows", "a_not_fooled", "a_length", "enrichment_length", "accuracy", "queries")


def removal_summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Most against random over seeds: the mean fall of the decision's probability in points, and the difference's standard errors."""
    pairs = [one["removal"] for one in found if one.get("removal")]
    if len(pairs) < 2:
        return {}
    most, random = (np.array([one[name] for one in pairs]) for name in ("most", "random"))
    further = random - most  # how much further the removal of the most helpful rows lowers it
    error = float(further.std(ddof=1) / len(further) ** 0.5)
    return {
        "removal_most": float(most.mean()),
        "removal_random": float(random.mean()),
        "removal_standard_errors": float(further.mean()) / error if error > 0 else None,
        "removal_clear_of_noise": float(np.mean([one["clear"] for one in pairs])),
    }


def accepted(means: dict[str, Any]) -> dict[str, str]:
    """Of each line that was asked for: reached, missed, or undetermined where there is no figure."""

    def line(value: float | None, reached: Callable[[float], bool]) -> str:
        return "undetermined" if value is None else "reached" if reached(value) else "missed"

    bad, clean = means["artefact"], means["clean"]
    return {
        "artefact world: mean a >= .10": line(bad["a"], lambda a: a >= A_AT_LEAST),
        "clean world: |mean a| <= .05": line(clean["a"], lambda a: abs(a) <= A_AT_MOST),
        "artefact world: highest tenth >= +.08": line(bad["enrichment"], lambda more: more >= MORE_AT_LEAST),
        "clean world: highest tenth <= +.03": line(clean["enrichment"], lambda more: more <= MORE_AT_MOST),
        "removal: most against random >= 2 standard errors": _by_removal(bad.get("removal_standard_errors")),
    }


def _by_removal(standard_errors: float | None) -> str:
    return "reached" if standard_errors is not None and standard_errors >= 2 else "undetermined"


# --------------------------------------------------------------------------------------------------- one world, one seed


def studied(size: Size, world: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng((seed, list(WORLDS).index(world)))
    value_of_key = rng.permutation(KEYS)
    rows = drawn(rng, value_of_key, rng.integers(2, size=size.rows), WORLDS[world])
    asked = drawn(rng, value_of_key, np.zeros(CANDIDATES, dtype=int), (1.0, 1.0))
    net = OneBlock()
    everything_1N = np.ones((1, size.rows), dtype=bool)
    theta_D = trained(net, rows, everything_1N, [(seed, 1)], size)[0]
    fooled_Q = (net(theta_D, asked.tokens_NT).argmax(1) == 1).numpy()
    one = Study(net, theta_D, rows)
    accuracy = float((net(theta_D, rows.tokens_NT).argmax(1) == rows.y_N).double().mean())
    facts = {"fooled": float(fooled_Q.mean()), "accuracy": accuracy, "mean_overlap": float(rows.overlap_N.mean())}
    if fooled_Q.sum() < FEWEST_QUERIES:
        return facts | {"undetermined": f"{int(fooled_Q.sum())} of {CANDIDATES} queries fool the model"}
    queries_QT = asked.tokens_NT[torch.from_numpy(np.flatnonzero(fooled_Q)[:MOST_QUERIES])]
    scores_QN = one.influence(queries_QT)
    found, length = judged(scores_QN, rows), judged(np.broadcast_to(one.lengths_N, scores_QN.shape), rows)
    others_QT = asked.tokens_NT[torch.from_numpy(np.flatnonzero(~fooled_Q)[:MOST_QUERIES])]
    not_fooled = judged(one.influence(others_QT), rows).curvature.value if len(others_QT) else None
    return facts | {
        "queries": len(queries_QT),
        "a": found.curvature.value,
        "a_interval": found.curvature.interval,
        "enrichment": found.enrichment.value,
        "follows": found.follows.value,
        "p": found.p,
        "deciles": np.nanmean(found.deciles_QT, axis=0).tolist(),
        "a_not_fooled": not_fooled,
        "a_length": length.curvature.value,
        "enrichment_length": length.enrichment.value,
        "removal": removal(net, rows, queries_QT, scores_QN, size, seed) if world == "artefact" and size.retrainings > 1 else None,
    }


def judged(scores_QN: np.ndarray, rows: Pairs) -> Artefact:
    return artefact(scores_QN, np.broadcast_to(rows.overlap_N, scores_QN.shape), permutations=199)


def removal(net: OneBlock, rows: Pairs, queries_QT: Tensor, scores_QN: np.ndarray, size: Size, seed: int) -> dict[str, Any]:
    """Points that the decision's probability changes by without the most helpful tenth, and a random one, from the same starts."""
    n_gone, n_rows = round(REMOVED * len(rows.y_N)), len(rows.y_N)
    chosen = {
        "most": np.argsort(-scores_QN.mean(0), kind="stable")[:n_gone],
        "random": np.random.default_rng((seed, 5)).choice(n_rows, n_gone, replace=False),
    }
    starts = [(seed, 100 + s) for s in range(size.retrainings)]
    kept = {"none": np.ones(n_rows, dtype=bool)} | {name: ~np.isin(np.arange(n_rows), gone) for name, gone in chosen.items()}
    points = {
        name: 100 * decided(net, trained(net, rows, np.stack([kept_N] * len(starts)), starts, size), queries_QT)
        for name, kept_N in kept.items()
    }
    effects = {name: points[name] - points["none"] for name in chosen}
    floor = noise_floor((effects["most"] - effects["random"])[:, None])
    return {
        **{name: float(effect_S.mean()) for name, effect_S in effects.items()},
        "signal_to_noise": float(floor.ratio_Q[0]),
        "clear": bool(floor.clear_Q(ENOUGH)[0]),
    }


def decided(net: OneBlock, theta_SD: Tensor, queries_QT: Tensor) -> np.ndarray:
    """[S] mean over queries of the probability of "true"."""
    with torch.no_grad():
        return np.array([float(net(theta_D, queries_QT).softmax(1)[:, 1].mean()) for theta_D in theta_SD])


def trained(net: OneBlock, rows: Pairs, kept_SN: np.ndarray, starts: Sequence[Sequence[int]], size: Size) -> Tensor:
    """[S, D]"""
    return trained_together(net, rows.tokens_NT, rows.y_N, kept_SN, starts, steps=size.steps)


# ------------------------------------------------------------------------------------------------------------- the pairs


@dataclass(frozen=True, eq=False)
class Pairs:
    tokens_NT: Tensor  # key, the premise's words, value, the hypothesis' words
    y_N: Tensor  # 1: true
    overlap_N: np.ndarray  # share of the hypothesis' words that the premise has


def drawn(rng: np.random.Generator, value_of_key: np.ndarray, labels_N: np.ndarray, full: tuple[float, float]) -> Pairs:
    """`full` are the shares of true and of false pairs whose hypothesis has the premise's words alone."""
    lines, overlaps = [], []
    for label in labels_N:
        key = int(rng.integers(KEYS))
        value = int(value_of_key[key]) if label else int(rng.choice([v for v in range(KEYS) if v != value_of_key[key]]))
        premise = rng.choice(WORDS, WORDS_EACH, replace=False)
        taken = np.ones(WORDS_EACH, dtype=bool) if rng.random() < full[0 if label else 1] else rng.random(WORDS_EACH) < BY_CHANCE
        others = rng.choice(np.setdiff1d(np.arange(WORDS), premise), WORDS_EACH, replace=False)
        hypothesis = rng.permutation(np.where(taken, rng.permutation(premise), others))
        lines.append([key, *(2 * KEYS + premise), KEYS + value, *(2 * KEYS + hypothesis)])
        overlaps.append(np.isin(hypothesis, premise).mean())
    return Pairs(torch.tensor(np.array(lines)), torch.from_numpy(np.asarray(labels_N)), np.array(overlaps))


# ------------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class OneBlock:
    """A transformer of one block on one flat vector: embeddings, causal attention, a gelu layer; two logits of the mean over positions."""

    width: int = 16
    hidden: int = 64
    vocabulary: int = 2 * KEYS + WORDS
    positions: int = 2 * (1 + WORDS_EACH)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        h, m = self.width, self.hidden
        square = dict.fromkeys(("query", "key", "value", "out"), (h, h))
        return {"word": (self.vocabulary, h), "place": (self.positions, h), **square, "up": (m, h), "down": (h, m), "head": (2, h)}

    @property
    def size(self) -> int:
        return sum(o * i for o, i in self.shapes.values())

    def drawn(self, seed: int | Sequence[int]) -> Tensor:
        rng = np.random.default_rng(seed)
        parts = [rng.normal(size=o * i) * (SMALL_WORDS if name in ("word", "place") else i**-0.5) for name, (o, i) in self.shapes.items()]
        return torch.from_numpy(np.concatenate(parts))

    def __call__(self, theta_D: Tensor, tokens_NT: Tensor) -> Tensor:
        """[N, 2]"""
        flat = theta_D.split([o * i for o, i in self.shapes.values()])
        w = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), flat, strict=True)}
        x_NTH = w["word"][tokens_NT] + w["place"]
        n_NTH = _normed(x_NTH)
        match_NTT = (n_NTH @ w["query"].T) @ (n_NTH @ w["key"].T).mT / self.width**0.5
        later_TT = torch.ones(self.positions, self.positions, dtype=torch.bool).triu(1)
        x_NTH = x_NTH + match_NTT.masked_fill(later_TT, -torch.inf).softmax(-1) @ (n_NTH @ w["value"].T) @ w["out"].T
        x_NTH = x_NTH + torch.nn.functional.gelu(_normed(x_NTH) @ w["up"].T) @ w["down"].T
        return _normed(x_NTH.mean(1)) @ w["head"].T


def _normed(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@dataclass(frozen=True, eq=False)
class Study:
    """Exact influence on the final weights. With two classes a row's Gauss-Newton term is `p (1 - p) d d'`, d the margin's gradient."""

    net: OneBlock
    theta_D: Tensor
    rows: Pairs

    @cached_property
    def rows_ND(self) -> Tensor:
        """Gradients of the rows' losses, `(p - y) d`."""
        return (self._p(self.rows.tokens_NT) - self.rows.y_N)[:, None] * self.margins_ND

    @cached_property
    def margins_ND(self) -> Tensor:
        return self._margins(self.rows.tokens_NT)

    @property
    def lengths_N(self) -> np.ndarray:
        return self.rows_ND.norm(dim=1).numpy()

    def influence(self, queries_QT: Tensor) -> np.ndarray:
        """[Q, N] `-(1/N) h_q' (G + lambda)^-1 g_n`, h the gradient of log p("true")."""
        p_N, layout = self._p(self.rows.tokens_NT), Layout((Block("theta", (self.net.size,), (self.net.size,)),))
        source, fisher = RootRows((p_N * (1 - p_N)).sqrt()[:, None] * self.margins_ND, layout), Fisher(damping=DAMPING, joint=True)
        h_QD = (1 - self._p(queries_QT))[:, None] * self._margins(queries_QT)
        x_QD = fisher.solve(fisher.fit(source), source, h_QD).value
        return -(x_QD @ self.rows_ND.T).numpy() / len(self.rows_ND)

    def _p(self, tokens_NT: Tensor) -> Tensor:
        return self.net(self.theta_D, tokens_NT).softmax(1)[:, 1].detach()

    def _margins(self, tokens_NT: Tensor) -> Tensor:
        """[N, D] the gradient of each pair's logit of "true" less that of "false"."""

        def margin(theta_D: Tensor, tokens_T: Tensor) -> Tensor:
            logits_O = self.net(theta_D, tokens_T[None])[0]
            return logits_O[1] - logits_O[0]

        return torch.func.vmap(torch.func.grad(margin), in_dims=(None, 0), chunk_size=64)(self.theta_D, tokens_NT).detach()


if __name__ == "__main__":
    main()
