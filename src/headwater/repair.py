"""A few steps on the rows that help, or away from those that harm, judged on outputs that had no part in choosing them.

What a trace is worth shows when one acts on it. The control is as many steps on as many random rows: a model that is trained a little
further gets better at many things, whatever the rows.

Q held-out queries · R random draws
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import nn

from headwater import api
from headwater.atomic import write_json
from headwater.corpus import collate, plan_batches
from headwater.index.build import open_session
from headwater.index.examples import stored_examples
from headwater.index.read import StoredIndex
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import say, track
from headwater.rank.topk import opponents, proponents
from headwater.recipe import IndexRecipe, RepairRecipe, TraceRecipe
from headwater.truth.finetune import TrainingDiverged, mean_loss
from headwater.types import DataError, Example, Finding, Measure, Scores, UsageError

TOKEN_BUDGET = 1024
ELSEWHERE_ROWS = 100  # training rows drawn at random, on which is seen what the steps cost


@dataclass(frozen=True)
class Estimate:
    """A mean, with a 95 % interval."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.value:+.3g} (95 % interval {self.interval[0]:+.3g} to {self.interval[1]:+.3g})"


@dataclass(frozen=True)
class Judgement:
    """Changes of the held-out queries' measure, mean over queries. `difference`: by the chosen rows, less the mean of the random draws."""

    change: Estimate
    random_changes: tuple[float, ...]
    difference: Estimate

    @property
    def beaten(self) -> int:
        """Random draws that changed less."""
        return sum(change < self.change.value for change in self.random_changes)


@dataclass(frozen=True)
class Repair:
    """What `out` holds: the changed model, and `record` as repair.json."""

    out: Path
    judgement: Judgement
    finding: Finding
    record: Mapping[str, Any]

    def __str__(self) -> str:
        steps, measure, elsewhere = (self.record[name] for name in ("steps", "measure", "elsewhere"))
        before, after = (elsewhere["loss_per_target"][name] for name in ("before", "after"))
        way = "up" if steps["kind"] == "harmful" else "down"
        return "\n".join(
            [
                f"{steps['steps']} steps ({steps['optimizer']}, lr {steps['lr']:g}) {way} the loss of {steps['rows']} {steps['kind']} "
                f"rows, chosen by {self.record['method']} over {self.record['anchors']} anchors",
                f"held-out   {len(self.record['held_out'])} queries, mean change of {measure['name']} ({measure['unit'] or 'no unit'}): "
                f"{self.judgement.change}",
                f"random     {', '.join(f'{change:+.3g}' for change in self.judgement.random_changes)}",
                f"difference {self.judgement.difference}",
                f"elsewhere  loss of a target in {elsewhere['rows']} random training rows: {before:.4g} -> {after:.4g}",
                f"{self.finding.status:10} {self.finding.because}",
                f"{self.out}: model/ and repair.json",
            ]
        )


def repair(
    run: str | Path,
    recipe: TraceRecipe,
    steps: RepairRecipe,
    *,
    anchors: Any,
    held_out: Any,
    out: str | Path,
    session: Session | None = None,
    data: Any = None,
) -> Repair:
    """Choose rows by their mean score over the anchors, step on them, and hold the held-out queries' change against random rows'.

    `anchors` and `held_out` are files or dicts of queries, as `headwater.trace` takes them; the recipe's primary method chooses. Only the
    parameters in the index's scope are stepped on: the scores are about these. Writes `out`/model and `out`/repair.json; what was
    traced stays as it is. `data` are the rows of an index of data in memory. A `session` that is given ends as the repaired model.
    Cost: a trace of the anchors; draws + 1 times the steps, and as many passes over the held-out queries.

    Raises UsageError where `out` is there already or a query stands on both sides, DataError where too few rows have a score of the sign
    that is asked for, TrainingDiverged where a step is not finite any more.
    """
    run, out = Path(run), Path(out)
    if out.exists():
        raise UsageError(f"{out} exists, and a repair overwrites nothing: name a new folder, or remove that one")
    session = session or open_session(IndexRecipe.parse(api.load(run).record["recipe"]).model)
    given = api.given_queries(anchors)
    asked, queries = api.encoded_queries(run, given, session), api.encoded_queries(run, held_out, session)
    _check_apart(asked, queries)
    trace = api.run_trace(run, recipe, given, session=session, data=data)
    index, measure = StoredIndex.open(run), trace.record["measure"]
    chosen = choose(trace.scores[recipe.primary], steps)
    draws = random_rows(index, chosen, steps)
    bench = Bench(session, index, measures.get(measure["name"]), queries, steps, rows=[chosen, *draws], data=data)
    before_Q, before_elsewhere = bench.values(), bench.elsewhere()
    random_RQ = np.stack([bench.after(rows) for rows in track(draws, total=len(draws), description="steps on random rows")])
    after_Q = bench.after(chosen)
    judgement = judge(after_Q - before_Q, random_RQ - before_Q)
    finding = found(judgement, steps, unit=measure["unit"], n=len(queries))
    record = {
        **_facts(run, session, recipe, steps, measure, n_anchors=len(asked)),
        "rows": _rows(index, trace.scores[recipe.primary], chosen),
        "random_rows": [[index.ids[i] for i in rows] for rows in draws],
        "held_out": _changes(queries, before_Q, after_Q, random_RQ),
        "held_out_in_training": _in_training(index, queries),
        "elsewhere": {"rows": len(bench.sample), "loss_per_target": {"before": before_elsewhere, "after": bench.elsewhere()}},
        **asdict(judgement),
        "finding": finding.to_json(),
    }
    _write(out, session, record)
    return Repair(out, judgement, finding, record)


# ---------------------------------------------------------------------------------------------------------- choosing


def mean_scores(scores: Scores) -> np.ndarray:
    """[N] over the queries that have one; NaN for a row that no query has looked at."""
    known_QN = np.isfinite(scores.values_QN)
    counts_N = known_QN.sum(0)
    return np.where(counts_N > 0, np.where(known_QN, scores.values_QN, 0).sum(0) / np.maximum(counts_N, 1), np.nan)


def choose(scores: Scores, steps: RepairRecipe) -> np.ndarray:
    """Positions of the rows with the highest mean score over the anchors, or for "harmful" the lowest."""
    chosen = (proponents if steps.kind == "helpful" else opponents)(mean_scores(scores), steps.rows)
    if len(chosen) < steps.rows:
        raise DataError(
            f"{len(chosen)} rows are {steps.kind} to the anchors by {scores.method}, {steps.rows} were asked for. A method without signs "
            "(BM25, length) knows no harmful rows; else ask for fewer rows, or give more anchors."
        )
    return chosen


def random_rows(index: StoredIndex, chosen: np.ndarray, steps: RepairRecipe) -> list[np.ndarray]:
    """As many rows as were chosen, from those that were not and that are not bad; once for each draw."""
    others = np.setdiff1d(np.flatnonzero(~index.column("bad").astype(bool)), chosen)
    if len(others) < len(chosen):
        raise DataError(f"{len(chosen)} of {len(index)} rows are chosen, and {len(others)} are left for a control: ask for fewer rows")
    rng = np.random.default_rng(steps.seed)
    return [rng.choice(others, size=len(chosen), replace=False) for _ in range(steps.draws)]


def _check_apart(anchors: Sequence[Example], held_out: Sequence[Example]) -> None:
    contents = {_content(query) for query in anchors}
    if both := [query.id for query in held_out if _content(query) in contents]:
        raise UsageError(f"{len(both)} of {len(held_out)} held-out queries are anchors too, the first is {both[0]}: they judge nothing")
    if len(held_out) < 2:
        raise UsageError(f"{len(held_out)} held-out queries, expected 2 or more: a change needs an interval")


def _content(query: Example) -> tuple[bytes, bytes]:
    return query.tokens.tobytes(), query.loss_mask.tobytes()


def _in_training(index: StoredIndex, queries: Sequence[Example]) -> int:
    known = set(zip(index.column("prompt"), index.column("response"), strict=True))
    return sum((query.prompt, query.response) in known for query in queries)


# ---------------------------------------------------------------------------------------------------------- stepping


class Bench:
    """One model that is stepped on, measured, and put back."""

    def __init__(
        self,
        session: Session,
        index: StoredIndex,
        measure: Measure,
        queries: Sequence[Example],
        steps: RepairRecipe,
        *,
        rows: Sequence[np.ndarray],
        data: Any = None,
    ) -> None:
        self.session, self.measure, self.queries, self.steps = session, measure, queries, steps
        good = np.flatnonzero(~index.column("bad").astype(bool))
        self.sample = np.random.default_rng(steps.seed + 1).choice(good, size=min(ELSEWHERE_ROWS, len(good)), replace=False)
        wanted = np.unique(np.concatenate([*rows, self.sample]))
        self.examples = dict(zip(wanted.tolist(), stored_examples(index, session, [index.ids[i] for i in wanted], data=data), strict=True))
        parameters = dict(session.model.named_parameters())
        self.parameters = [parameters[block.name] for block in index.layout.blocks]
        session.model.requires_grad_(False)
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    def after(self, rows: np.ndarray) -> np.ndarray:
        """[Q] the measure after the steps on these rows, from the traced model. The model is left as it then is."""
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.copy_(start)
        self._step_on([self.examples[int(i)] for i in rows])
        return self.values()

    def _step_on(self, examples: Sequence[Example]) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        optimizer = make_optimizer(self.parameters, self.steps)
        for step in range(self.steps.steps):
            optimizer.zero_grad(set_to_none=True)
            self._backward(examples)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.steps.clip)
            if not torch.isfinite(norm):
                raise TrainingDiverged(
                    f"step {step}: the gradient's norm is {norm.item():.4g}, expected a finite number. The usual cause is a learning rate "
                    f"that is too high (it is {self.steps.lr:g}); try a tenth of it."
                )
            optimizer.step()
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def _backward(self, examples: Sequence[Example]) -> None:
        """The gradient of the mean loss over all targets, or of minus that, a few rows at a time."""
        sign, n_targets = 1 if self.steps.kind == "helpful" else -1, _n_targets(examples)
        for positions in plan_batches([example.n_tokens for example in examples], token_budget=TOKEN_BUDGET):
            some = [examples[i] for i in positions]
            (sign * self._loss(some) * (_n_targets(some) / n_targets)).backward()

    def _loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """The mean over targets. Through the model's own head: a measure's way past the logits has no gradient of the head's weight."""
        if self.session.task == "causal-lm":
            return mean_loss(self.session.model, examples, pad_id=self.session.pad_id)
        return self._each(measures.LOSS, examples).mean()

    def _each(self, measure: Measure, examples: Sequence[Example]) -> torch.Tensor:
        batch = collate(examples, pad_id=self.session.pad_id).to(self.session.device)
        return measure.fn(self.session.run(batch), batch)

    @torch.no_grad()
    def values(self) -> np.ndarray:
        """[Q] float64 the measure of each held-out query under the model as it is now."""
        return self._all(self.measure, self.queries)

    @torch.no_grad()
    def elsewhere(self) -> float:
        """The mean loss of a target in random training rows: what the steps may have spoilt."""
        examples = [self.examples[int(i)] for i in self.sample]
        return float(self._all(measures.LOSS, examples).sum() / _n_targets(examples))

    def _all(self, measure: Measure, examples: Sequence[Example]) -> np.ndarray:
        values = np.empty(len(examples))
        for positions in plan_batches([example.n_tokens for example in examples], token_budget=TOKEN_BUDGET):
            values[positions] = self._each(measure, [examples[i] for i in positions]).double().cpu().numpy()
        return values


def make_optimizer(parameters: Sequence[nn.Parameter], steps: RepairRecipe) -> torch.optim.Optimizer:
    if steps.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=steps.lr)
    return torch.optim.AdamW(parameters, lr=steps.lr, weight_decay=0.0)


def _n_targets(examples: Sequence[Example]) -> int:
    """A classifier's row has one."""
    return sum(max(1, example.n_loss_tokens) for example in examples)


# ----------------------------------------------------------------------------------------------------------- judging


def judge(change_Q: np.ndarray, random_RQ: np.ndarray) -> Judgement:
    """Means over queries. The difference's interval has the spread over queries and over draws in it, by Student's t.

    Its degrees of freedom are those of the smaller of the two, less than there are (Welch): the interval is rather too wide.
    """
    change_of_draw_R, difference_Q = random_RQ.mean(1), change_Q - random_RQ.mean(0)
    variances = difference_Q.var(ddof=1) / len(difference_Q), change_of_draw_R.var(ddof=1) / len(change_of_draw_R)
    difference = _estimate(float(difference_Q.mean()), math.sqrt(sum(variances)), min(random_RQ.shape))
    change = _estimate(float(change_Q.mean()), math.sqrt(change_Q.var(ddof=1) / len(change_Q)), len(change_Q))
    return Judgement(change, tuple(change_of_draw_R.tolist()), difference)


def _estimate(value: float, error: float, n: int) -> Estimate:
    half = float(stdtrit(n - 1, 0.975)) * error
    return Estimate(value, (value - half, value + half))


def found(judgement: Judgement, steps: RepairRecipe, *, unit: str | None, n: int) -> Finding:
    low, high = judgement.difference.interval
    status = "ok" if low > 0 else "fail" if high < 0 else "unknown"
    verdict = {"ok": "more than", "fail": "less than", "unknown": "not surely more or less than"}[status]
    return Finding(
        name="repair",
        status=status,
        because=f"Steps on {steps.rows} {steps.kind} rows changed held-out queries {verdict} steps on random rows "
        f"({judgement.beaten} of {len(judgement.random_changes)} draws changed less).",
        value=judgement.difference.value,
        unit=unit,
        interval=judgement.difference.interval,
        n=n,
        next_step=None if status == "ok" else "Try more anchors, another method or other steps, or leave the model as it is.",
    )


# ---------------------------------------------------------------------------------------------------------- recording


def _facts(
    run: Path, session: Session, recipe: TraceRecipe, steps: RepairRecipe, measure: Mapping[str, Any], *, n_anchors: int
) -> dict[str, Any]:
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "headwater": version("headwater"),
        "run": str(run.resolve()),
        "model": session.name,
        "measure": dict(measure),
        "method": recipe.primary,
        "method_options": recipe.methods[recipe.primary],
        "steps": steps.model_dump(),
        "anchors": n_anchors,
    }


def _rows(index: StoredIndex, scores: Scores, chosen: np.ndarray) -> list[dict[str, Any]]:
    """The chosen rows, the strongest first, with their mean score over the anchors."""
    columns = {name: index.column(name)[chosen].tolist() for name in ("prompt", "response", "source", "row")}
    means = mean_scores(scores)[chosen].tolist()
    return [
        {"id": index.ids[i], "score": means[place], **{name: column[place] for name, column in columns.items()}}
        for place, i in enumerate(chosen)
    ]


def _changes(queries: Sequence[Example], before_Q: np.ndarray, after_Q: np.ndarray, random_RQ: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"id": query.id, "before": float(before_Q[q]), "after": float(after_Q[q]), "after_random": random_RQ[:, q].tolist()}
        for q, query in enumerate(queries)
    ]


def _write(out: Path, session: Session, record: Mapping[str, Any]) -> None:
    """The model first: a folder with a repair.json is complete."""
    network: Any = session.model
    network.save_pretrained(out / "model")
    session.tokenizer.save_pretrained(out / "model")
    write_json(out / "repair.json", record)
    say(f"wrote {out / 'repair.json'}")
