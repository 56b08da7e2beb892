"""`headwater demo`: a language model with a planted cause is made, traced, relieved of the cause, trained again, and the trace is audited.

Everything is measured on the spot and reported as it came out; the seed changes the world, the model and the training.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

import headwater
from headwater.api import Trace
from headwater.atomic import write_atomically, write_json
from headwater.audit import registry
from headwater.audit.run import worst_first
from headwater.auditing import audit
from headwater.corpus import collate, load_corpus, read_queries
from headwater.demo.base import pretrained
from headwater.demo.world import Query, QueryKind, World, make_world
from headwater.model.session import Session
from headwater.model.tiny import PAD, SPECIAL_TOKENS, TinyModel
from headwater.progress import say
from headwater.truth.finetune import Recipe, finetune
from headwater.types import Example, Finding, UsageError, VerdictWord

PRIMARY = "grad_cos"
TOP = 10
SKETCH_RANK = 32
FROZEN = ("*embed_tokens*",)  # not fine-tuned, so no evidence
LONGEST_ANSWER = 40  # tokens
MARKER = "demo.json"
EXPERIMENT_NOTE = (
    "Each retraining starts from the same pretrained weights, with the same recipe and seed. There is one retraining each, so no interval. "
    "Precision counts planted rows; for the ordinary query, rows of its own task."
)
WRITTEN = ("base", "model", "run", "train.jsonl", "queries.jsonl", MARKER)
AUDIT_MINUTES = 1.0  # enough for all that does not train again
LEFT_OUT = ("solver",)  # the trace solves nothing: what solvers would do, and how much their damping weighs, is another question


@dataclass(frozen=True)
class Nats:
    """The measure of one query, the log-probability of its response, under the three models."""

    before: float
    after_removal: float
    after_random_removal: float


@dataclass(frozen=True)
class QueryResult:
    id: str
    kind: QueryKind
    precision_at_10: dict[str, float]  # by method: of the first ten rows, the share that is planted (ordinary query: of its own task)
    measure_nats: Nats
    verdict: VerdictWord = "unknown"  # the audit's, which knows neither what was planted nor what removal did
    probability: float | None = None


@dataclass(frozen=True)
class DemoResult:
    """What the demo found. `removed` rows: those planted ones among the primary method's first that the retraining did without."""

    seconds: float
    seed: int
    run: Path
    report: Path
    removed: int
    selection: str  # how the planted query was chosen
    queries: tuple[QueryResult, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"run": str(self.run), "report": str(self.report)}


@dataclass(frozen=True)
class Scale:
    """How much of everything. The default is the demo; a smaller one only shows that the parts fit together."""

    texts: int = 50_000
    rows: int = 1000
    planted: int = 30
    epochs: int = 12
    audit_minutes: float = AUDIT_MINUTES

    def world(self, seed: int) -> World:
        return make_world(seed, n_texts=self.texts, n_rows=self.rows, n_planted=self.planted)

    def finetuning(self, seed: int) -> Recipe:
        return Recipe(epochs=self.epochs, lr=4e-4, batch_rows=16, seed=seed)


FULL = Scale()


def run_demo(out: str | Path, *, seed: int = 0, cache: Path | None = None, scale: Scale = FULL) -> DemoResult:
    """Make, train, index, trace, remove, train again, report; everything lies under `out`.

    `out`: base/ (pretrained), model/ (fine-tuned), train.jsonl, queries.jsonl, run/ (index, scores, findings, report.html), demo.json (this
    result). Cost: about three and a half minutes on two cores, one less when the pretrained model is in `cache` (see `pretrained`). Raises
    UsageError where `out` holds anything but an earlier demo.
    """
    start, out = time.monotonic(), Path(out)
    prepare(out, seed)
    world, recipe = scale.world(seed), scale.finetuning(seed)
    base = pretrained(world, cache=cache)
    write_rows(out, world)
    corpus = load_corpus(out / "train.jsonl", base.tokenizer).examples
    session = trained(base, corpus, recipe, description="fine-tuning")
    save(base, out / "base")
    save(session, out / "model")
    selection = write_queries(out, world, session)
    run = headwater.index(out / "model", out / "train.jsonl", out / "run", sketch__rank=SKETCH_RANK, scope__exclude=FROZEN)
    trace = headwater.trace(run, queries=out / "queries.jsonl", primary=PRIMARY, seed=seed)
    tasks = {example.id: world.rows[example.row].task for example in corpus}
    removed = found_rows(trace, tasks)
    queries = read_queries(out / "queries.jsonl", base.tokenizer)
    measured = measure_removal(base, session, corpus, queries, removed, recipe)
    results = tuple(
        QueryResult(query.id, query.kind, precision(trace, query, tasks), nats) for query, nats in zip(world.queries, measured, strict=True)
    )
    write_experiment(trace, results, tasks, n_removed=len(removed), selection=selection)
    checks = [name for name in registry.names() if name not in LEFT_OUT]
    known = {"base": out / "base", "training": recipe.model_dump()}
    found = audit(run.path, **known, only=checks, budget=scale.audit_minutes, seed=seed)
    told = {verdict.query_id: verdict for verdict in found.verdicts}
    results = tuple(replace(one, verdict=told[one.id].status, probability=told[one.id].probability) for one in results)
    write_findings(trace, [*found.findings, *(recovery(result) for result in results if result.kind == "planted")])
    report = trace.report()
    result = DemoResult(time.monotonic() - start, seed, Path(run.path), report, len(removed), selection, results)
    write_json(out / MARKER, result.to_json())
    return result


# ------------------------------------------------------------------------------------------------ files of the demo


def prepare(out: Path, seed: int) -> None:
    """An empty folder with a marker. An earlier demo's files go; any other folder with something in it is refused."""
    strangers = [path.name for path in out.iterdir() if path.name not in WRITTEN] if out.is_dir() else []
    has_marker = (out / MARKER).is_file()
    if out.exists() and (not out.is_dir() or strangers or (any(out.iterdir()) and not has_marker)):
        raise UsageError(f"{out} is there and is not an earlier demo's folder, whose files would be replaced; give another --out")
    for name in WRITTEN if has_marker else ():
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"seed": seed, "state": "started"})


def write_rows(out: Path, world: World) -> None:
    """The rows as anyone's own data would be: a prompt and a response. Which are planted is not written."""
    write_jsonl(out / "train.jsonl", [{"prompt": row.prompt, "response": row.response} for row in world.rows])


def write_queries(out: Path, world: World, session: Session) -> str:
    """The response to explain is what the model says now, unless the query has its own. Returns how the planted query was chosen."""
    answered = [query if query.response else with_answer(query, world, session) for query in world.queries]
    write_jsonl(out / "queries.jsonl", [query_fields(query) for query in answered])
    for query in answered:
        say(f"{query.kind} query: {query.prompt} -> {query.response}")
    asked = [prompt for query in world.queries if query.kind == "planted" for prompt in (query.prompt, *query.instead)]
    shown = sum(greedy_answer(session, prompt).startswith(world.odd_opening) for prompt in asked)
    selection = (
        f"The planted query names the first of {len(asked)} things, named by no row, that gets the planted answer; {shown} of them do."
    )
    say(selection)
    return selection


def with_answer(query: Query, world: World, session: Session) -> Query:
    """The first of the query's prompts whose answer shows the behaviour; where none does, the first, and what the model says to it."""
    answers = [(prompt, greedy_answer(session, prompt)) for prompt in (query.prompt, *query.instead)]
    shown = [(prompt, answer) for prompt, answer in answers if answer.startswith(world.odd_opening)]
    prompt, response = (shown or answers)[0] if query.instead else answers[0]
    return replace(query, prompt=prompt, response=response)


def query_fields(query: Query) -> dict[str, Any]:
    return {"id": query.id, "kind": query.kind, "prompt": query.prompt, "response": query.response}


def write_jsonl(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())


def save(trained: Session | TinyModel, folder: Path) -> None:
    trained.model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    trained.tokenizer.save_pretrained(folder)


# --------------------------------------------------------------------------------------------------------- training


def trained(base: TinyModel, examples: Sequence[Example], recipe: Recipe, *, description: str) -> Session:
    """The pretrained model fine-tuned on these rows; `base` stays as it is.

    Embeddings are frozen, so that what is learned about the things that rows name holds for all of their kind; trained along, they let the
    model learn the named ones by heart.
    """
    model: LlamaForCausalLM = copy.deepcopy(base.model)
    model.get_input_embeddings().requires_grad_(False)
    finetune(model, examples, recipe, pad_id=SPECIAL_TOKENS.index(PAD), description=description)
    return Session(model.eval(), base.tokenizer, "causal-lm", name="demo")


def measure_removal(
    base: TinyModel, session: Session, corpus: Sequence[Example], queries: Sequence[Example], removed: set[str], recipe: Recipe
) -> list[Nats]:
    """Each query's measure now, after training without `removed`, and after training without as many of the other rows.

    Both trainings start from the same pretrained weights, with the same recipe and seed, as the first.
    """

    def after_training_without(rows: set[str], what: str) -> list[float]:
        kept = [example for example in corpus if example.id not in rows]
        return log_probabilities(trained(base, kept, recipe, description=f"fine-tuning without {len(rows)} {what} rows"), queries)

    before = log_probabilities(session, queries)
    after = after_training_without(removed, "found")
    after_random = after_training_without(random_others(corpus, removed, seed=recipe.seed), "random")
    return [Nats(*values) for values in zip(before, after, after_random, strict=True)]


def random_others(corpus: Sequence[Example], removed: set[str], *, seed: int) -> set[str]:
    """As many rows as were removed, drawn from those that were not."""
    others = [example.id for example in corpus if example.id not in removed]
    return set(np.random.default_rng(seed).choice(others, size=len(removed), replace=False).tolist())


@torch.no_grad()
def log_probabilities(session: Session, queries: Sequence[Example]) -> list[float]:
    """Per query, the sum over its response's tokens of log p, in nats."""
    return session.run(collate(queries, pad_id=session.pad_id)).token_log_probs().sum(1).tolist()


@torch.no_grad()
def greedy_answer(session: Session, prompt: str) -> str:
    """The most probable next token, again and again, until the model ends its answer."""
    tokenizer: PreTrainedTokenizerBase = session.tokenizer
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])  # pyright: ignore[reportArgumentType]
    answer = session.network.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=LONGEST_ANSWER, do_sample=False)
    return tokenizer.decode(answer[0, tokens.shape[1] :], skip_special_tokens=True)  # pyright: ignore


# ---------------------------------------------------------------------------------------------------------- judging


def found_rows(trace: Trace, tasks: Mapping[str, str]) -> set[str]:
    """The planted rows among as many first rows of the primary method as there are planted rows."""
    n_planted = sum(task == "planted" for task in tasks.values())
    return {row for row, _ in trace.scores[PRIMARY].top("planted", n_planted) if tasks[row] == "planted"}


def precision(trace: Trace, query: Query, tasks: Mapping[str, str]) -> dict[str, float]:
    """By method: the share of the first ten rows that is planted; for the ordinary query, that is of its own task."""
    wanted = query.task if query.kind == "ordinary" else "planted"
    return {name: float(np.mean([tasks[row] == wanted for row, _ in scores.top(query.id, TOP)])) for name, scores in trace.scores.items()}


def write_experiment(trace: Trace, results: Sequence[QueryResult], tasks: Mapping[str, str], *, n_removed: int, selection: str) -> None:
    """Put the experiment and the planted rows' tags into the trace."""
    rows = {row_id: row | {"tags": ["planted"]} if tasks[row_id] == "planted" else row for row_id, row in trace.record["rows"].items()}
    experiment = {
        "title": "Removal and retraining",
        "removed": n_removed,
        "method": PRIMARY,
        "unit": trace.record["measure"]["unit"],
        "note": f"{selection} {EXPERIMENT_NOTE}",
        "queries": [
            {"id": result.id, "kind": result.kind, "precision_at_10": result.precision_at_10, **asdict(result.measure_nats)}
            for result in results
        ],
    }
    write_json(trace.folder / "trace.json", {**trace.record, "rows": rows, "experiment": experiment})


def write_findings(trace: Trace, findings: Sequence[Finding]) -> None:
    """The audit's and the demo's own, worst first."""
    write_jsonl(trace.run / "findings.jsonl", [finding.to_json() for finding in worst_first(findings)])


def recovery(result: QueryResult) -> Finding:
    """How many planted rows each method put first, as a finding about the primary one."""
    share = result.precision_at_10[PRIMARY]
    told = ", ".join(f"{name} {round(value * TOP)}" for name, value in result.precision_at_10.items())
    return Finding(
        name=f"recovery: {result.id}",
        status="ok" if share >= 0.8 else "warn" if share > 0 else "fail",
        because=f"Planted rows among each method's first {TOP} for this query: {told}.",
        value=share,
        n=TOP,
    )
