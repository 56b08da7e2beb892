"""FastIF on a language small enough for exact answers: LiSSA against CG, its noise, the candidates' recall, workers, and repair.

    python -m benchmarks.fastif [--json] [--only accuracy,noise,recall,workers,divergence,repair] [--small]

Six topics, each a Markov chain of its own over the same 48 words; a row is 6 words of prompt and 10 of response. The model is a Llama of
two layers and hidden size 24, trained on 1,200 rows for three epochs: it has learned the topics and is far from done. In scope for the
solvers are the MLPs' output matrices, 3,072 numbers, kept whole; with every matrix of the layers, 13,824, the same rule asks LiSSA for more
steps than this benchmark has time for ("divergence" says how many). The matrix is the rows' empirical Fisher, damping 0.1 times its mean
eigenvalue, block by block.

Q queries · N training rows · D numbers of a row
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headwater
from benchmarks.record import record
from headwater.corpus import load_corpus
from headwater.curvature import CG, LiSSA
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index
from headwater.methods import FastIF
from headwater.methods.candidates import pick, recall, stage
from headwater.methods.influence import Influence
from headwater.model import measures
from headwater.model.session import Session
from headwater.model.tiny import tiny_model
from headwater.progress import quiet, say
from headwater.recipe import RepairRecipe, TraceRecipe
from headwater.repair import Repair, repair
from headwater.truth.finetune import Recipe, finetune
from headwater.types import Scores

WORDS = [consonant + vowel for consonant in "bdfgklmnpr" for vowel in "aeiou"][:48]
PROMPT_WORDS, RESPONSE_WORDS = 6, 10
STAGES = ("representation_response", "representation", "idf", "bm25")
SHARES = (0.05, 0.1, 0.25, 0.5)
AT = 20  # first rows whose recall is taken, as in SYSTEMS' measurement on such a model
CLOSED_FORM = {"name": "fisher", "joint": True}


@dataclass(frozen=True)
class Size:
    """How much of everything; `SMALL` only shows that the parts fit together."""

    rows: int = 1200
    epochs: int = 3
    solved: int = 8  # queries of the solvers' comparison
    asked: int = 48  # queries of the recall
    share_of_steps: float = 1.0  # of those recommended
    noise_steps: int = 600
    noise_seeds: int = 8
    worker_steps: int = 3000
    worker_rounds: int = 3
    repairs: int = 10


SMALL = Size(120, 2, 2, 8, 0.02, 40, 3, 20, 1, 1)


# ---------------------------------------------------------------------------------------------------------- the world


class World:
    """Rows, a model that was trained on them, and queries from the same chains."""

    def __init__(self, size: Size, *, seed: int, topics: int = 6) -> None:
        self.rng = np.random.default_rng(seed)
        self.chains = self.rng.dirichlet(np.full(len(WORDS), 0.08), size=(topics, len(WORDS)))
        self.rows = [self.draw(i % topics) for i in range(size.rows)]
        texts = [f"{row['prompt']} {row['response']}" for row in self.rows]
        shape = {"hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        model, self.tokenizer = tiny_model(seed, texts=texts, vocab_size=400, max_position_embeddings=64, **shape)
        examples = load_corpus(self.rows, self.tokenizer).examples
        fit = finetune(model, examples, Recipe(epochs=size.epochs, lr=5e-3, batch_rows=32, seed=seed), pad_id=0)
        self.losses = fit.losses
        self.session = Session(model.eval(), self.tokenizer, "causal-lm", name="two layers")

    def draw(self, topic: int) -> dict[str, str]:
        words = [int(self.rng.integers(len(WORDS)))]
        while len(words) < PROMPT_WORDS + RESPONSE_WORDS:
            words.append(int(self.rng.choice(len(WORDS), p=self.chains[topic, words[-1]])))
        text = [WORDS[word] for word in words]
        return {"prompt": " ".join(text[:PROMPT_WORDS]), "response": " ".join(text[PROMPT_WORDS:])}

    def index(self, rows: Sequence[dict[str, str]], measure: str, *, include: str) -> MemoryIndex:
        """Exact gradients: nothing is sketched."""
        layout = make_layout(self.session.model, find_scope(self.session.model, include=[include]), SketchSpec(rank=None))
        examples = load_corpus(rows, self.tokenizer).examples
        return query_index(self.session, layout, examples, measures.get(measure), token_budget=4096)


def in_memory(world: World, asked: Sequence[dict[str, str]], *, include: str = "*down_proj*") -> tuple[MemoryIndex, MemoryIndex]:
    rows = world.index(world.rows, "loss", include=include)
    features = {name: rows.take(name, range(len(rows))) for name in rows.features}
    columns = {name: rows.column(name) for name in ("prompt", "response", "group", "bad")}
    return MemoryIndex(rows.ids, rows.layout, "loss", features, columns), world.index(asked, "response_log_probability", include=include)


def score(method: Any, index: MemoryIndex, queries: MemoryIndex) -> Scores:
    return method.score(method.fit(index), index, queries)


def correlations(found: Scores, truth: Scores) -> list[float]:
    """Pearson's, of the queries that have an answer: one whose solve diverged has zeros."""
    pairs = [(one_N, other_N) for one_N, other_N in zip(found.values_QN, truth.values_QN, strict=True) if np.any(one_N)]
    return [float(np.corrcoef(one_N, other_N)[0, 1]) for one_N, other_N in pairs]


# ------------------------------------------------------------------------------------------------------ what is measured


def accuracy(index: MemoryIndex, queries: MemoryIndex, size: Size) -> dict[str, Any]:
    """LiSSA as recommended, and as the paper has it, against CG: Pearson correlation of all scores, query by query."""
    advice = FastIF().recommend(index)
    say(str(advice))
    truth = score(Influence(CG(tolerance=1e-8, max_steps=2000)), index, queries)
    recommended = replace(advice.lissa, max_steps=round(size.share_of_steps * advice.lissa.max_steps))
    start = time.perf_counter()
    found = score(FastIF(share=1.0, curvature=recommended), index, queries)
    seconds = time.perf_counter() - start
    published = score(FastIF(share=1.0, curvature=LiSSA(batch_rows=1, max_steps=1000)), index, queries)
    in_disguise = score(Influence(CG(damping=5e-3 * 1e4)), index, queries)
    return {
        "cg": {"status": truth.provenance["solve"]["status"], "residual": truth.provenance["solve"]["residual_largest"]},
        "recommended": {
            "batch_rows": advice.chosen.batch_rows,
            "steps": recommended.max_steps,
            "lambda": advice.damping_least,
            "largest_batch_eigenvalue": rounded(advice.chosen.batch_eigenvalue),
            "scale_at_most": rounded(advice.chosen.scale),
            **solved(found, truth),
            "seconds_a_query": round(seconds / len(queries), 2),
        },
        "batch_1_steps_1000": solved(published, truth),
        "damping_5e-3_scale_1e4": {"effective_damping": 50.0, "cosine_to_gradient": in_disguise.provenance["solve"]["cosine_to_gradient"]},
    }


def solved(found: Scores, truth: Scores) -> dict[str, Any]:
    facts, pearson = found.provenance["solve"], correlations(found, truth)
    return {
        "pearson_mean": rounded(statistics.mean(pearson)) if pearson else None,
        "pearson_least": rounded(min(pearson)) if pearson else None,
        "without_answer": len(found.query_ids) - len(pearson),
        "decay": rounded(facts["decay"]),
        "scale": rounded(facts["scale"]),
        "status": facts["status"],
        "not_a_number": int(np.isnan(found.values_QN).sum()),
        "queries": len(found.query_ids),
    }


def divergence(world: World, size: Size) -> dict[str, Any]:
    """Batches of one row with every matrix of the layers in scope: single rows are far beyond the whole operator's largest eigenvalue."""
    index, queries = in_memory(world, [world.draw(topic) for topic in range(2)], include="*layers*proj*")
    method = FastIF(share=1.0, curvature={"name": "lissa", "batch_rows": 1, "max_steps": size.worker_steps})
    state = method.fit(index)
    found = method.score(state, index, queries)
    squares_N = index.take("gradient", range(len(index))).square().sum(1)
    return {
        "numbers_of_a_row": index.layout.size,
        "steps_recommended": method.recommend(index).chosen.steps,
        "scale_at_first": rounded(float(state["scale"])),
        "largest_batch_eigenvalue": rounded(float(squares_N.max())),
        "scale_at_last": rounded(found.provenance["solve"]["scale"]),
        "status": found.provenance["solve"]["status"],
        "not_a_number": int(np.isnan(found.values_QN).sum()),
    }


def noise(index: MemoryIndex, queries: MemoryIndex, size: Size) -> dict[str, Any]:
    """The variance of scores over seeds, by the number of runs that are averaged: times that number, over one run's. 1 is `1 / R`."""
    asked = queries.subset(range(2))

    def variance(repeats: int) -> float:
        configs = [LiSSA(batch_rows=8, max_steps=size.noise_steps, tolerance=0.0, repeats=repeats, seed=s) for s in range(size.noise_seeds)]
        values_SQN = np.stack([score(Influence(config), index, asked).values_QN for config in configs])
        return float(values_SQN.var(0, ddof=1).sum())

    one = variance(1)
    return {"seeds": size.noise_seeds, "variance_times_runs": {str(runs): rounded(runs * variance(runs) / one) for runs in (2, 4, 8)}}


def recalls(index: MemoryIndex, queries: MemoryIndex) -> dict[str, Any]:
    """Of the first `AT` rows of the full influence (the largest, and the largest of either sign), those among the candidates."""
    full_QN = score(FastIF(share=1.0, curvature=CLOSED_FORM), index, queries).values_QN
    found: dict[str, Any] = {}
    for by in STAGES:
        first = score(stage(by), index, queries)
        found[by] = {}
        for share in SHARES:
            picked_QN = pick(first, round(share * len(index)))
            one, either = recall(full_QN, picked_QN, at=AT), recall(np.abs(full_QN), picked_QN, at=AT)
            assert one is not None
            assert either is not None
            found[by][f"{share:.0%}"] = {**rounded_recall(one.to_json()), "either_sign": rounded(either.value)}
    note = score(FastIF(curvature=CLOSED_FORM, recall_at=AT), index, queries).provenance["notes"][0]
    say(note)
    at_a_tenth = found["representation_response"]["10%"]
    return {
        "at": AT,
        "queries": len(queries),
        "by": found,
        "times_chance": rounded(at_a_tenth["value"] / at_a_tenth["chance"]),
        "printed": note,
    }


def rounded_recall(value: dict[str, Any]) -> dict[str, Any]:
    return {name: [rounded(edge) for edge in part] if isinstance(part, list) else rounded(part) for name, part in value.items()}


def workers(index: MemoryIndex, queries: MemoryIndex, size: Size) -> dict[str, Any]:
    """Sixteen queries by one process and by two, in turn. `cpu_ratio` is what it would be on cores of one's own, were shares equal."""
    asked = queries.subset(range(min(16, len(queries))))
    lissa = {"name": "lissa", "batch_rows": 8, "max_steps": size.worker_steps, "average": True}
    methods = {n: FastIF(share=1.0, curvature=lissa, workers=n) for n in (1, 2)}
    state = methods[1].fit(index)
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    values: dict[int, np.ndarray] = {}
    for _ in range(size.worker_rounds):
        for n, method in methods.items():
            wall_s, cpu_s, found = timed(lambda method=method: method.score(state, index, asked))
            times[n].append((wall_s, cpu_s))
            values[n] = found.values_QN
    return {
        "ratio": rounded(statistics.median(one[0] / two[0] for one, two in zip(times[1], times[2], strict=True))),
        "cpu_ratio": rounded(statistics.median(2 * one[1] / two[1] for one, two in zip(times[1], times[2], strict=True))),
        "seconds_one": rounded(statistics.median(wall for wall, _ in times[1])),
        "identical": bool(np.array_equal(values[1], values[2])),
        "queries": len(asked),
    }


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(seconds on the clock, seconds of processors, ours and those of processes that ended, the result)."""
    wall, cpu = time.perf_counter(), _processors()
    result = work()
    return time.perf_counter() - wall, _processors() - cpu, result


def _processors() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def repairs(size: Size) -> dict[str, Any]:
    """Ten worlds, models and sets of anchors: 10 anchors of one topic choose 40 rows, 30 other outputs of that topic judge.

    FastIF chooses; beside it the same steps on the rows of a gradient cosine and of BM25.
    """
    found = [one_world(size, seed=seed) for seed in range(size.repairs)]
    return {"seeds": size.repairs, **{name: repaired([one[name] for one in found]) for name in CHOOSERS}}


CHOOSERS: dict[str, dict[str, Any]] = {"fastif": {"share": 0.25, "curvature": "fisher"}, "grad_cos": {}, "lexical": {}}


def repaired(found: Sequence[Repair]) -> dict[str, Any]:
    differences = [one.judgement.difference for one in found]
    return {
        "beats_random": sum(one.value > 0 for one in differences),
        "interval_above_0": sum(one.interval[0] > 0 for one in differences),
        "draws_beaten": sum(one.judgement.beaten for one in found),
        "draws": sum(len(one.judgement.random_changes) for one in found),
        "change_nats": [rounded(one.judgement.change.value) for one in found],
        "random_change_nats": [rounded(statistics.mean(one.judgement.random_changes)) for one in found],
        "difference_nats": [[rounded(one.value), *map(rounded, one.interval)] for one in differences],
        "difference_mean_nats": rounded(statistics.mean(one.value for one in differences)),
        "loss_elsewhere": [[rounded(value) for value in one.record["elsewhere"]["loss_per_target"].values()] for one in found],
    }


def one_world(size: Size, *, seed: int) -> dict[str, Repair]:
    world = World(size, seed=100 + seed)
    topic = seed % len(world.chains)
    anchors, held_out = ([world.draw(topic) for _ in range(n)] for n in (10, 30))
    steps = RepairRecipe(lr=1e-3, rows=40, steps=10, seed=seed)  # chosen on seeds 500 to 503
    traced = copy.deepcopy(world.session.model.state_dict())
    found: dict[str, Repair] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = headwater.index(world.session, world.rows, Path(folder) / "run").path
        for name, options in CHOOSERS.items():
            world.session.model.load_state_dict(traced)
            recipe, out = TraceRecipe(methods={name: options}, n_reference=0), Path(folder) / name
            files = {"anchors": anchors, "held_out": held_out, "out": out}
            found[name] = repair(run, recipe, steps, **files, session=world.session, data=world.rows)
    return found


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


PARTS = ("accuracy", "noise", "recall", "workers", "divergence", "repair")


def measure(size: Size, parts: Sequence[str]) -> dict[str, Any]:
    start = time.monotonic()
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "rows": size.rows}
    if set(parts) - {"repair"}:
        world = World(size, seed=0)
        index, queries = in_memory(world, [world.draw(i % 6) for i in range(size.asked)])
        result |= {"numbers_of_a_row": index.layout.size, "final_loss": rounded(statistics.mean(world.losses[-10:]))}
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "accuracy": lambda: accuracy(index, queries.subset(range(size.solved)), size),
            "noise": lambda: noise(index, queries, size),
            "recall": lambda: recalls(index, queries),
            "workers": lambda: workers(index, queries, size),
            "divergence": lambda: divergence(world, size),
        }
        for name in [name for name in parts if name in work]:
            began = time.monotonic()
            result[name] = {**work[name](), "seconds": round(time.monotonic() - began)}
            say(f"{name}: {result[name]}")
    if "repair" in parts:
        began = time.monotonic()
        result["repair"] = {**repairs(size), "seconds": round(time.monotonic() - began)}
    return {**result, "seconds": round(time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts, with commas between them")
    parser.add_argument("--small", action="store_true", help="a few rows and steps: only to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(SMALL if arguments.small else Size(), arguments.only.split(","))
    for name, value in result.items():
        print(f"{name:20} {value}")
    if arguments.json:
        record("fastif", result, f"python -m benchmarks.fastif --json --only {arguments.only} --threads {arguments.threads}")


if __name__ == "__main__":
    with quiet(False):
        main()
