"""LDS on a tiny language model: every method's scores against 128 retrainings, with a two-way interval on every figure.

    python -m benchmarks.lds [--json] [--source paper|own] [--work runs/lds-paper] [--processes 2] [--until STAGE] [--small]

A Llama of four layers (hidden size 128, BPE of 2,048) is pretrained for a few minutes, fine-tuned by a Hugging Face Trainer (LoRA r = 4,
alpha = 32 on q and v, eight epochs) and indexed with its checkpoints; then it is fine-tuned again on 64 random halves of the rows with two
seeds each, and the log-probability of each query's response is measured after every training. A method's LDS is the Spearman correlation,
over the halves, of the sum of its scores of the rows that were kept with the measured outcome; the mean over queries.

"paper": the grammars task of Li et al. 2024, 900 rows of ten classes and 100 test rows, where ../shared/data/paper is there. "own": a task
of the same kind that is made here, 600 rows and 100 queries of ten rules. Beside the methods stand a table that only knows whether two rows
are of one class, and the noise ceiling.

Every curvature is taken with its default damping and with others. The best of these is chosen on the very halves it is reported for: it
says what a damping could do, not what a user would get. K-FAC and EK-FAC are those of the live model, all other curvatures those of the
stored rows. CG on the model's own Gauss-Newton matrix takes a pass and more for each query and step, so it is asked of two queries of
each class, for a bounded number of steps, and stands in a table of its own beside the others' figures on those queries.

The work folder is gone on with where a call stopped; another one is needed for other options. Q queries · N training rows
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import headwater
from benchmarks.grammars import packed
from benchmarks.record import record
from headwater import curvature, methods
from headwater.atomic import write_atomically, write_json
from headwater.corpus import load_corpus
from headwater.evaluate.agreement import Table
from headwater.evaluate.figure import Figure
from headwater.evaluate.lds import matched, noise_ceiling, paired_difference, tables
from headwater.evaluate.two_way import two_way_figure
from headwater.index.build import open_session
from headwater.index.live import LiveIndex, LiveQueries, open_live
from headwater.index.queries import query_index
from headwater.index.read import StoredIndex
from headwater.methods.shared import wanted_roles
from headwater.model import measures
from headwater.model.tiny import tiny_model
from headwater.progress import quiet, say, track
from headwater.rank.trace import query_members
from headwater.recipe import DesignOptions, IndexRecipe, TruthRecipe
from headwater.retraining import truth_of_run
from headwater.study.base import encoder_folder
from headwater.training.callback import HeadwaterCallback, RowIdCollator, with_row_ids
from headwater.truth.bank import read_bank
from headwater.truth.finetune import Recipe, finetune
from headwater.truth.retrain import trainer_rows
from headwater.types import Scores, Truth, UsageError

DATA = Path("../shared/data")
MEASURE = measures.get("response_log_probability")
SWEEP = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # x the mean eigenvalue of a block; 0.1 is the default
ORACLE = "same class"


@dataclass(frozen=True)
class Size:
    layers: int = 4
    hidden: int = 128
    vocabulary: int = 2048
    pretraining_steps: int = 800
    epochs: int = 8
    lr: float = 3e-3
    rows: int = 900
    queries: int = 100
    subsets: int = 64
    seeds: int = 2
    sweep: tuple[float, ...] = SWEEP


SMALL = Size(layers=2, hidden=16, vocabulary=300, pretraining_steps=4, epochs=2, rows=40, queries=6, subsets=6, seeds=2, sweep=(0.1, 10.0))


# -------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """Rows and queries with prompt, response and variation (the class); `text` is what the model is pretrained on."""

    rows: list[dict[str, str]]
    queries: list[dict[str, str]]
    text: str


def paper_task(data: Path, size: Size) -> Task:
    """The paper's own rows, a whole number of classes' worth of each."""
    train, test = (
        read_paper(data / "paper" / f"grammars-{split}.parquet", n) for split, n in (("train", size.rows), ("test", size.queries))
    )
    text = (data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    return Task(train, [{"id": f"test-{q}", **row} for q, row in enumerate(test)], "\n".join([text, *(row["prompt"] for row in train)]))


def read_paper(path: Path, n: int) -> list[dict[str, str]]:
    """The first rows of each class, n in all."""
    frame = pd.read_parquet(path).rename(columns={"prompts": "prompt"})
    some = frame.groupby("variation", sort=False).head(math.ceil(n / frame.variation.nunique())).sort_index().head(n)
    return some[["prompt", "response", "variation"]].to_dict("records")


SYLLABLES = ("ba", "do", "ki", "lu", "me", "na", "po", "ri", "su", "ta", "ve", "zo")
RULES: dict[str, Callable[[list[str]], list[str]]] = {
    "words reversed": lambda words: words[::-1],
    "letters reversed": lambda words: [word[::-1] for word in words],
    "capitals": lambda words: [word.upper() for word in words],
    "first word twice": lambda words: [words[0], *words],
    "last word first": lambda words: [words[-1], *words[:-1]],
    "no vowels": lambda words: ["".join(letter for letter in word if letter not in "aeiou") for word in words],
    "first letters": lambda words: [word[0] for word in words],
    "consonants doubled": lambda words: ["".join(letter if letter in "aeiou" else 2 * letter for letter in word) for word in words],
    "sorted": lambda words: sorted(words),
    "every word in brackets": lambda words: [f"({word})" for word in words],
}


def own_task(size: Size, seed: int = 0) -> Task:
    """Ten rules of how words become others, over invented words: as many rows of each, in a drawn order."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(SYLLABLES, size=rng.integers(1, 4))) for _ in range(200)]
    pairs = [own_row(rng, words, rule) for rule in RULES for _ in range(math.ceil((size.rows + size.queries) / len(RULES)))]
    order = rng.permutation(len(pairs))[: size.rows + size.queries]
    rows = [pairs[i] for i in order]
    text = "\n".join(" ".join(rng.choice(words, size=12)) for _ in range(6000))
    queries = [{"id": f"query-{q}", **row} for q, row in enumerate(rows[size.rows :])]
    return Task(rows[: size.rows], queries, text)


def own_row(rng: np.random.Generator, words: Sequence[str], rule: str) -> dict[str, str]:
    some = list(rng.choice(words, size=rng.integers(3, 6)))
    shown, other = some, list(rng.choice(words, size=3))
    example = f"{' '.join(other)} -> {' '.join(RULES[rule](other))}"
    return {"prompt": f"{example} ; {' '.join(shown)} ->", "response": " ".join(RULES[rule](shown)), "variation": rule}


# ------------------------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Bench:
    """A folder in which the stages leave what the next one takes."""

    work: Path
    source: str
    data: Path
    size: Size
    processes: int

    @cached_property
    def task(self) -> Task:
        return paper_task(self.data, self.size) if self.source == "paper" else own_task(self.size)

    @property
    def run(self) -> Path:
        return self.work / "run"

    @property
    def bank(self) -> Path:
        return self.work / "bank"

    @property
    def sample(self) -> list[str]:
        """The ids of the first two queries of each class: those that the costliest variant is asked."""
        return [
            query["id"] for _, some in pd.DataFrame(self.task.queries).groupby("variation") for query in some.head(2).to_dict("records")
        ]

    def open(self) -> None:
        """Raises UsageError where the folder is of another size or source."""
        settings, path = json.loads(json.dumps({"source": self.source, **asdict(self.size)})), self.work / "settings.json"
        if path.exists() and (there := json.loads(path.read_text())) != settings:
            raise UsageError(f"{self.work} was begun with {there}, and {settings} are asked for: choose another --work, or remove it")
        write_json(path, settings)
        for name, rows in (("rows", self.task.rows), ("queries", self.task.queries)):
            write_atomically(self.work / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def pretrain(self) -> None:
        size, text = self.size, self.task.text
        shape = {"hidden_size": size.hidden, "intermediate_size": 11 * size.hidden // 4, "num_hidden_layers": size.layers}
        network, tokenizer = tiny_model(0, texts=[text], vocab_size=size.vocabulary, **shape)
        pieces = packed(tokenizer(text)["input_ids"], 64, 32 * size.pretraining_steps, 0)
        recipe = Recipe(epochs=1, lr=1e-3, batch_rows=32)
        finetune(network, pieces, recipe, pad_id=tokenizer.pad_token_id, description="pretraining")
        network.save_pretrained(self.work / "base")
        tokenizer.save_pretrained(self.work / "base")

    def train(self) -> None:
        """The model whose answers are explained: by a Trainer, with checkpoints after each two epochs."""
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

        base = str((self.work / "base").resolve())
        tokenizer = AutoTokenizer.from_pretrained(base)
        rows = load_corpus(self.task.rows, tokenizer).examples
        torch.manual_seed(0)
        lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        steps = 2 * math.ceil(len(rows) / 24)
        arguments = TrainingArguments(
            str(self.work / "out"), num_train_epochs=self.size.epochs, learning_rate=self.size.lr, per_device_train_batch_size=24,
            lr_scheduler_type="cosine", warmup_steps=0.05, adam_beta2=0.95, save_strategy="steps", save_steps=steps, seed=0, report_to=[],
            remove_unused_columns=False, use_cpu=True, disable_tqdm=True, logging_steps=steps,
        )  # fmt: skip
        trainer = Trainer(
            get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora),
            arguments,
            RowIdCollator(DataCollatorForSeq2Seq(tokenizer)),
            with_row_ids(trainer_rows(rows)),
            processing_class=tokenizer,
            callbacks=[HeadwaterCallback()],
        )
        trainer.train()
        trainer.save_model()

    def index(self) -> None:
        """Gradients whole (LoRA is small), with the members that methods ask for."""
        roles = ["checkpoint", "adam", "second_moment", "base"]
        options = {"store.dtype": "float32", "store.rept_layer": -1, "members.roles": roles, "engine.token_budget": 2048}
        headwater.index(None, self.work / "rows.jsonl", self.run, from_run=self.work / "out", **options)

    def retrain(self) -> None:
        recipe = TruthRecipe(
            queries=str(self.work / "queries.jsonl"), design=DesignOptions(subsets=self.size.subsets), seeds=self.size.seeds
        )
        truth_of_run(self.run, recipe, out=self.bank, processes=self.processes, threads=1)

    def score(self) -> None:
        """Every variant's scores, a file for each: what has one is not computed again."""
        missing = [variant for variant in variants(self.size) if not self.scores(variant).exists()]
        if not missing:
            return
        bench = Scoring(self.run, self.work / "queries.jsonl", self.sample)
        write_json(self.work / "scores" / "product.json", bench.product())
        for variant in track(missing, total=len(missing), description="scoring"):
            self._score(variant, bench)

    def _score(self, variant: Variant, bench: Scoring) -> None:
        start = time.monotonic()
        try:
            with quiet():
                found = bench.scores(variant)
        except UsageError as error:
            say(f"{variant.name}: left out: {error}")
            write_json(self.scores(variant).with_suffix(".json"), {"left_out": str(error)})
            return
        solve = found.provenance.get("solve", {})
        about = {"seconds": round(time.monotonic() - start, 1), "status": solve.get("status"), "cosine": solve.get("cosine_to_gradient")}
        if solve.get("residual_largest") is not None:
            about |= {name: solve[name] for name in ("steps", "residual_median", "residual_largest", "residual_of")}
        write_atomically(
            self.scores(variant),
            lambda file: np.savez(
                file, values_QN=found.values_QN, query_ids=found.query_ids, train_ids=found.train_ids, about=json.dumps(about)
            ),
        )

    def scores(self, variant: Variant) -> Path:
        return self.work / "scores" / f"{variant.name.replace(' ', '-')}.npz"

    def read(self, variant: Variant) -> tuple[Scores, dict[str, Any]] | None:
        """None for a method that had to be left out."""
        if not self.scores(variant).exists():
            return None
        with np.load(self.scores(variant), allow_pickle=False) as file:
            ids = {name: tuple(file[name].tolist()) for name in ("query_ids", "train_ids")}
            return Scores(values_QN=file["values_QN"], method=variant.name, unit=None, **ids), json.loads(str(file["about"]))

    def why_not(self, variant: Variant) -> str:
        """What kept a variant from being scored."""
        path = self.scores(variant).with_suffix(".json")
        return json.loads(path.read_text())["left_out"] if path.exists() else "could not be computed here"

    def oracle(self) -> Scores:
        """1 where row and query are of one class, else 0: what knowing the class alone is worth."""
        index = StoredIndex.open(self.run)
        class_N = np.array([row["variation"] for row in self.task.rows])[index.column("row").astype(int)]
        class_Q = np.array([query["variation"] for query in self.task.queries])
        values_QN = (class_Q[:, None] == class_N[None]).astype(float)
        return Scores(values_QN, tuple(query["id"] for query in self.task.queries), tuple(index.ids), ORACLE, None)


STAGES: dict[str, Callable[[Bench], None]] = {
    "pretrain": Bench.pretrain, "train": Bench.train, "index": Bench.index, "score": Bench.score, "retrain": Bench.retrain
}  # fmt: skip


def run_stages(bench: Bench, until: str) -> dict[str, float]:
    """{stage: seconds it took, over all calls}: what ended before is not done again."""
    bench.open()
    seconds: dict[str, float] = {}
    for name in list(STAGES)[: list(STAGES).index(until) + 1]:
        path = bench.work / "stages" / f"{name}.json"
        so_far = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "done": False}
        if not so_far["done"]:
            say(f"{name} ...")
            start = time.monotonic()
            try:
                STAGES[name](bench)
                so_far["done"] = True
            finally:
                so_far["seconds"] += time.monotonic() - start
                write_json(path, so_far)
        seconds[name] = so_far["seconds"]
    return seconds


# ------------------------------------------------------------------------------------------------------------ methods


@dataclass(frozen=True)
class Variant:
    """A method with options, under the name it has in the table."""

    name: str
    method: str
    options: dict[str, Any]
    damping: float | None = None  # x the mean eigenvalue, of a curvature
    sampled: bool = False  # asked of `Bench.sample` alone

    @property
    def is_default(self) -> bool:
        return self.damping in (None, 0.1)


MODEL = ("kfac", "ekfac")  # over the live model
STEPS = 8  # of CG on the live model: a Gauss-Newton product for each query and step
SAMPLED = Variant("ekfac_cg of the model", "ekfac_cg", {"mode": "model", "max_steps": STEPS}, damping=0.1, sampled=True)
OPTIONS: dict[str, dict[str, Any]] = {
    "lexical": {"text": "both"},
    "fastif": {"curvature": "fisher"},  # by its own LiSSA it takes minutes a query
    "lissa": {"max_steps": 100},  # "status" says that it was stopped
    **{name: {"mode": "model"} for name in MODEL},
}
CHEAP = ("fisher", "datainf", "kfac", "ekfac")  # closed forms take the whole sweep; Fisher's stands for that of its approximate solvers


def variants(size: Size) -> Iterator[Variant]:
    for name in methods.names():
        options = OPTIONS.get(name, {})
        if name in curvature.names():
            low, high = (0.0, math.inf) if name in CHEAP else (0.1, 100.0)
            for factor in (factor for factor in size.sweep if low <= factor <= high):
                rule = {"damping": f"{factor:g} * mean_eigenvalue"}
                yield Variant(f"{name} {factor:g}", name, {**rule, **options}, damping=factor)
        else:
            yield Variant(name, name, options)
    yield SAMPLED


class Scoring:
    """An index and its queries, opened once for all methods; `sample` are the ids of those that sampled variants are asked."""

    def __init__(self, run: Path, queries: Path, sample: Sequence[str]) -> None:
        self.stored = StoredIndex.open(run)
        indexed = IndexRecipe.parse(headwater.load(run).record["recipe"])
        self.session = open_session(indexed.model)
        self.examples = headwater.api.encoded_queries(run, str(queries), self.session)
        self.sample = [q for q, example in enumerate(self.examples) if example.id in sample]

    def scores(self, variant: Variant) -> Scores:
        encoder = {"model": str(encoder_folder())} if variant.method == "embedding" else {}
        method = methods.get(variant.method, **variant.options, **encoder)
        rows: StoredIndex | LiveIndex = self.live if variant.options.get("mode") == "model" else self.stored
        roles = wanted_roles(method, self.stored)
        queries: Any = self.queried.with_members(query_members(self.session, self.stored, roles, self.examples, MEASURE))
        if isinstance(rows, LiveIndex):
            queries = LiveQueries(queries, rows.source, self.examples, MEASURE)
        if variant.sampled:
            queries = queries.subset(self.sample)
        state = method.fit(rows)
        if hasattr(method, "for_task"):
            state = method.for_task(state, rows, queries)  # type: ignore[attr-defined]
        return method.score(state, rows, queries)

    def product(self) -> dict[str, float]:
        """What one more product with the model's own Gauss-Newton matrix takes, and how many form it: one for each number of a row."""
        source, seconds = self.live.source, []
        for n in (1, 3):
            start = time.monotonic()
            source.gauss_newton(torch.ones(n, source.layout.size, dtype=self.session.dtype))
            seconds.append(time.monotonic() - start)
        return {"numbers": source.layout.size, "seconds": round(abs(seconds[1] - seconds[0]) / 2, 2)}

    @cached_property
    def live(self) -> LiveIndex:
        return open_live(self.stored, self.session, [])

    @cached_property
    def queried(self) -> Any:
        return query_index(self.session, self.stored.layout, self.examples, MEASURE, extra=self.stored.spec.extra)


# ------------------------------------------------------------------------------------------------------------ figures


def figures(bench: Bench) -> dict[str, Any]:
    """The table: each variant's LDS, its interval, and its difference from the same-class oracle; another of the sample."""
    truth = read_bank(bench.bank)
    oracle = spearman(bench.oracle(), truth)
    found: dict[str, dict[str, Any]] = {ORACLE: rounded(two_way_figure(oracle, correlation=True))}
    for variant in variants(bench.size):
        if variant.sampled or (read := bench.read(variant)) is None:
            continue
        scores, about = read
        against = paired_difference(table := spearman(scores, truth), oracle)
        found[variant.name] = {
            **rounded(two_way_figure(table, correlation=True)),
            "against_same_class": rounded(against),
            "beats_same_class": bool(against.interval is not None and against.interval[0] > 0),
            **({} if variant.damping is None else {"damping_x_mean_eigenvalue": variant.damping, "is_default": variant.is_default}),
            **about,
        }
    ceiling = noise_ceiling(truth.outcomes_DSQ)
    sample = sample_figures(bench, truth)
    return {
        "methods": found,
        "sample": sample,
        "ceiling": None if ceiling is None else rounded(ceiling),
        "best_damping": best_dampings(bench.size, found),
        "beats_same_class": [name for name, one in found.items() if one.get("beats_same_class")],
        "left_out": left_out(bench, {**found, **sample["methods"]}),
        "trainings": int(truth.outcomes_DSQ.shape[0] * truth.outcomes_DSQ.shape[1]),
        "diverged": 0 if truth.diverged_DS is None else int(truth.diverged_DS.sum()),
        "kept_share": round(float(truth.kept_DN.mean()), 3),
    }


def sample_figures(bench: Bench, truth: Truth) -> dict[str, Any]:
    """On the sample's queries alone: every method, default damping, and its paired difference from the one that is asked no others."""
    part = of_queries(truth, bench.sample)
    read = {one.name: found for one in variants(bench.size) if one.is_default and (found := bench.read(one)) is not None}
    ranks = {ORACLE: spearman(bench.oracle(), part), **{name: spearman(scores, part) for name, (scores, _) in read.items()}}
    found = {name: rounded(two_way_figure(table, correlation=True)) for name, table in ranks.items()}
    if SAMPLED.name in read:
        found[SAMPLED.name] |= read[SAMPLED.name][1]
        for name in found.keys() - {SAMPLED.name}:
            found[name]["less_the_sampled"] = rounded(paired_difference(ranks[name], ranks[SAMPLED.name]))
    ceiling = noise_ceiling(part.outcomes_DSQ)
    return {"queries": list(part.query_ids), "methods": found, "ceiling": None if ceiling is None else rounded(ceiling)}


def of_queries(truth: Truth, ids: Sequence[str]) -> Truth:
    chosen = [q for q, query in enumerate(truth.query_ids) if query in ids]
    return replace(truth, outcomes_DSQ=truth.outcomes_DSQ[:, :, chosen], query_ids=tuple(truth.query_ids[q] for q in chosen))


def spearman(scores: Scores, truth: Truth) -> Table:
    """On the queries that both have."""
    scores, truth = matched(scores, truth)
    return tables(scores, truth, np.arange(len(truth.kept_DN)))["spearman"]


def rounded(figure: Figure) -> dict[str, Any]:
    value = round(float(figure.value), 3) if math.isfinite(figure.value) else None
    return {"lds": value, "interval": None if figure.interval is None else [round(float(edge), 3) for edge in figure.interval]}


def best_dampings(size: Size, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """{curvature: the variant of the highest LDS}, chosen on the halves it is reported for."""
    best: dict[str, str] = {}
    for variant in variants(size):
        if variant.sampled or variant.damping is None or (one := found.get(variant.name)) is None or one["lds"] is None:
            continue
        if variant.method not in best or one["lds"] > found[best[variant.method]]["lds"]:
            best[variant.method] = variant.name
    return best


def left_out(bench: Bench, found: dict[str, Any]) -> dict[str, str]:
    """{variant: why}. The Gauss-Newton matrix of the model is always among them: the products that would form it, by what one takes."""
    product = json.loads((bench.work / "scores" / "product.json").read_text())
    numbers, seconds = product["numbers"], product["seconds"]
    why = f"formed by {numbers:,} products of {seconds} s, {numbers * seconds / 3600:.1f} h; {SAMPLED.name} solves the same system"
    return {"ggn of the model": why, **{one.name: bench.why_not(one) for one in variants(bench.size) if one.name not in found}}


def show(result: dict[str, Any]) -> None:
    print_table([line(name, one, best=set(result["best_damping"].values())) for name, one in result["methods"].items()])
    for name, why in result["left_out"].items():
        print(f"left out: {name}: {why}")
    if result["ceiling"] is not None:
        print(f"noise ceiling {result['ceiling']['lds']} {span(result['ceiling']['interval'])}")
    print(f"beats the same-class oracle (interval of the paired difference above 0): {', '.join(result['beats_same_class']) or 'nothing'}")
    print(f"\non {len(result['sample']['queries'])} of the queries, two of each class, with default dampings:")
    print_table([sample_line(name, one) for name, one in result["sample"]["methods"].items()])


def print_table(lines: list[dict[str, Any]]) -> None:
    print(pd.DataFrame(lines).sort_values("LDS", ascending=False).to_string(index=False, na_rep="-"))


def sample_line(name: str, one: dict[str, Any]) -> dict[str, Any]:
    against = one.get("less_the_sampled", {"lds": None, "interval": None})
    solved = f"{one['steps']} steps, residual {one['residual_largest']:.2g}" if "steps" in one and name == SAMPLED.name else ""
    return {
        "method": name,
        "LDS": one["lds"],
        "95 %": span(one["interval"]),
        "less ekfac_cg of the model": against["lds"],
        "95 % ": span(against["interval"]),
        "": solved,
    }


def line(name: str, one: dict[str, Any], *, best: set[str]) -> dict[str, Any]:
    against = one.get("against_same_class", {"lds": None, "interval": None})
    marks = [word for word, is_so in (("default", one.get("is_default")), ("best damping, chosen here", name in best)) if is_so]
    return {
        "method": name,
        "LDS": one["lds"],
        "95 %": span(one["interval"]),
        "less same class": against["lds"],
        "95 % ": span(against["interval"]),
        "": ", ".join(marks),
    }


def span(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def projected(seconds: dict[str, float], size: Size) -> str:
    """What 64 halves with two seeds would have taken, by what this run's trainings took."""
    each = seconds["retrain"] / (size.subsets * size.seeds)
    full = Size()
    rest = sum(value for name, value in seconds.items() if name != "retrain")
    total = rest + each * full.subsets * full.seeds
    return (
        f"{each:.1f} s a training; everything else {rest / 60:.1f} min; with {full.subsets} x {full.seeds} trainings {total / 60:.0f} min"
    )


def measure(bench: Bench, until: str = "retrain") -> dict[str, Any] | None:
    """None where the stages were not all asked for."""
    seconds = run_stages(bench, until)
    if until != "retrain":
        return None
    facts = {"source": bench.source, "processes": bench.processes, **asdict(bench.size), "n_rows": len(bench.task.rows)}
    return {**facts, **figures(bench), "stage_seconds": {name: round(value) for name, value in seconds.items()},
            "seconds": round(sum(seconds.values())), "projected": projected(seconds, bench.size)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    parser.add_argument("--source", choices=("paper", "own"), help="the paper's rows where they are there")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, help="runs/lds-SOURCE where not given")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--subsets", type=int, default=Size.subsets)
    parser.add_argument("--seeds", type=int, default=Size.seeds)
    parser.add_argument("--until", choices=tuple(STAGES), default="retrain", help="stop after this stage")
    parser.add_argument("--small", action="store_true", help="a few rows and steps: only to see that it runs")
    arguments = parser.parse_args()
    source = arguments.source or ("paper" if (arguments.data / "paper" / "grammars-train.parquet").exists() else "own")
    rows = 900 if source == "paper" else 600
    size = SMALL if arguments.small else Size(rows=rows, subsets=arguments.subsets, seeds=arguments.seeds)
    work = arguments.work or Path("runs") / f"lds-{source}{'-small' if arguments.small else ''}"
    result = measure(Bench(work, source, arguments.data, size, arguments.processes), arguments.until)
    if result is None:
        return
    show(result)
    print(result["projected"])
    if arguments.json:
        record("lds", result, command=f"python -m benchmarks.lds {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    torch.set_num_threads(max(1, min(2, torch.get_num_threads())))
    main()
