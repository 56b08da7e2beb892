"""The audit of a run folder, and the check of a model and data before anything costly: files in, findings and verdicts out.

Writes findings.jsonl (a line for each finding, worst first) and audit.json (seconds, plots, what was left out, verdicts) into the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headwater import api
from headwater.atomic import write_atomically, write_json
from headwater.audit import registry
from headwater.audit.calibration import shipped
from headwater.audit.check import Check
from headwater.audit.run import Audit, run_checks
from headwater.audit.subject import Asked, Subject
from headwater.audit.verdict import calibrated_on, verdicts
from headwater.index.build import IN_MEMORY, open_corpus, open_session
from headwater.index.examples import stored_examples
from headwater.model import measures
from headwater.model.session import Session
from headwater.rank.export import trace_folder
from headwater.rank.trace import check_index
from headwater.recipe import IndexRecipe, ModelOptions
from headwater.retraining import named_base, parsed_recipe
from headwater.truth.trained import recipe_of
from headwater.types import Example, Finding, HeadwaterError, UsageError, Verdict

BEFORE = ("numerics", "coverage", "duplicates", "repetition")
"""What `headwater check` runs: all that needs nothing but a model and rows."""


@dataclass(frozen=True)
class RunAudit:
    """What was found about a trace: findings, worst first, and a verdict for each query."""

    run: Path
    trace: str | None
    audit: Audit
    verdicts: Sequence[Verdict] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def findings(self) -> Sequence[Finding]:
        return self.audit.findings

    @property
    def failed(self) -> bool:
        return self.audit.failed

    def to_json(self) -> dict[str, Any]:
        told = [{**vars(one), "findings": [finding.to_json() for finding in one.findings]} for one in self.verdicts]
        return {"run": str(self.run), "trace": self.trace, **self.facts, **self.audit.to_json(), "verdicts": told}


def audit(
    run: str | Path,
    *,
    trace: str | None = None,
    budget: float | None = None,
    only: Sequence[str] | None = None,
    base: str | Path | Session | None = None,
    validation: Any = None,
    features: Mapping[str, np.ndarray] | None = None,
    behaves: Callable[[str, Example], float] | None = None,
    training: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    session: Session | None = None,
    data: Any = None,
    seed: int = 0,
) -> RunAudit:
    """Audit a run's newest trace, or the one named; its index alone where nothing was traced. Writes findings.jsonl and audit.json.

    `budget` is in minutes: checks run cheapest first, and what does not fit is `unknown`. `only` names the checks to run, `options` are
    theirs by name. `base` is the model before training, the run's own where its recipe says. `validation` are rows of the same kind that
    were not trained on. `training` says how the model was trained (the fields of `truth.finetune.Recipe`), where no Trainer's folder does.
    `features` are columns to hold against the influence, `behaves` says whether a generated text shows the behaviour.
    """
    start = time.monotonic()
    given = {
        "base": base,
        "validation": validation,
        "features": features,
        "behaves": behaves,
        "training": training,
        "session": session,
        "data": data,
    }
    subject = open_subject(run, trace=trace, seed=seed, **given)
    found = run_checks(subject, chosen(only, options), budget_s=None if budget is None else 60 * budget)
    told = verdicts(subject, found.evidence) if subject.trace is not None else ()
    used = () if subject.trace is None else shipped().usable(found.evidence, subject.trace.primary)
    name = None if subject.trace is None else str(subject.trace.record["name"])
    facts = {
        "headwater": version("headwater"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "total_s": round(time.monotonic() - start, 2),
        "calibration": calibrated_on(shipped(), used),
    }
    result = RunAudit(Path(run), name, found, told, facts)
    lines = "".join(json.dumps(finding.to_json()) + "\n" for finding in result.findings)
    write_atomically(Path(run) / "findings.jsonl", lines.encode())
    write_json(Path(run) / "audit.json", result.to_json())
    return result


def check(
    model: str | Path | Session, data: Any, *, only: Sequence[str] | None = None, budget: float | None = None, **options: Any
) -> Audit:
    """The checks that need a model and rows alone, before anything costly. Options are those of `headwater.index`, by dotted name."""
    given = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in options.items()]
    in_memory = None if isinstance(data, str | Path) else data
    path = model.name if isinstance(model, Session) else str(model)
    flags = {"model.path": path, "data.source": IN_MEMORY if in_memory is not None else str(data)}
    recipe = IndexRecipe.build(flags=flags, overrides=given)
    return check_recipe(recipe, session=model if isinstance(model, Session) else None, data=in_memory, only=only, budget=budget)


def check_recipe(
    recipe: IndexRecipe, *, session: Session | None = None, data: Any = None, only: Sequence[str] | None = None, budget: float | None = None
) -> Audit:
    """`check` of the model and rows that a recipe for an index names."""
    session = session or open_session(recipe.model)
    corpus = open_corpus(recipe.data, session, data)
    subject = Subject(session=session, rows=corpus.examples, training=_training(recipe))
    return run_checks(subject, chosen(only or BEFORE), budget_s=None if budget is None else 60 * budget)


def chosen(only: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Check]:
    """All checks, or those named, with their options. Raises UsageError for a name that there is not."""
    options = options or {}
    return [registry.get(name, **options.get(name, {})) for name in (only or registry.names())]


def open_subject(
    run: str | Path,
    *,
    trace: str | None = None,
    base: str | Path | Session | None = None,
    validation: Any = None,
    features: Mapping[str, np.ndarray] | None = None,
    behaves: Callable[[str, Example], float] | None = None,
    training: Mapping[str, Any] | None = None,
    session: Session | None = None,
    data: Any = None,
    seed: int = 0,
) -> Subject:
    """A run folder as its checks see it. Raises IntegrityError where the index is of another model."""
    opened = api.load(run)
    recipe = IndexRecipe.parse(opened.record["recipe"])
    session = session or open_session(recipe.model)
    check_index(opened.index, session)
    return Subject(
        session=session,
        rows=stored_examples(opened.index, session, data=data),
        index=opened.index,
        trace=_asked(opened, session, trace),
        base=_base(recipe, session, base),
        validation=() if validation is None else api.encoded_queries(Path(run), validation, session),
        training=_training(recipe) if training is None else parsed_recipe(dict(training)).model_dump(),
        features=dict(features or {}),
        behaves=behaves,
        seed=seed,
    )


def _asked(run: api.Run, session: Session, name: str | None) -> Asked | None:
    if name is None and not any((run.path / "scores").glob("*/trace.json")):
        return None
    found = run.newest() if name is None else api.read_trace(trace_folder(run.path, name))
    queries = api.encoded_queries(run.path, found.folder / "queries.jsonl", session)
    measure = measures.get(found.record["measure"]["name"])
    return Asked({**found.record, "name": found.folder.name}, queries, measure, found.scores)


def _base(recipe: IndexRecipe, session: Session, base: str | Path | Session | None) -> Callable[[], Session] | None:
    """How to load the model before training: the one that is named, a LoRA's with its B at zero, or the one that the run names."""
    if isinstance(base, Session):
        return lambda: base
    if base is None and session.adapter is not None and not recipe.model.merge:
        return partial(_untrained, recipe.model, session)
    path = str(base) if base is not None else session.name if session.adapter is not None else named_base(recipe)
    return None if path is None else partial(_plain, recipe.model, session, path)


def _untrained(options: ModelOptions, session: Session) -> Session:
    """The adapter before it learned anything, where that can be had: its parameters are those of the index."""
    try:
        return open_session(options.model_copy(update={"zero_adapter": True}), tokenizer=session.tokenizer)
    except UsageError:
        return _plain(options, session, session.name)


def _plain(options: ModelOptions, session: Session, path: str) -> Session:
    revision = options.revision if path == options.path else None
    plain = {"path": path, "revision": revision, "adapter": None, "merge": False, "zero_adapter": False}
    return open_session(options.model_copy(update=plain), tokenizer=session.tokenizer)


def _training(recipe: IndexRecipe) -> dict[str, Any]:
    """The recipe of the Trainer whose folder the run names; nothing where that is not known."""
    for folder in (recipe.members.from_run, recipe.model.adapter, recipe.model.path):
        try:
            if folder is not None:
                return recipe_of(folder).model_dump()
        except HeadwaterError:
            continue
    return {}
