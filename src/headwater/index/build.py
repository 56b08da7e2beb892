"""From a model and its training data to one index: session, corpus, layout, then shard by shard what is missing.

Letters: N rows of a shard · D stored numbers of a gradient row · H hidden size · K blocks.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.atomic import remove_left_overs, write_atomically, write_json
from headwater.corpus import Corpus, collate, count_copies, load_corpus, number_copies
from headwater.gradient.check import CaptureCheck, checked_layout
from headwater.gradient.extra import describe_features
from headwater.gradient.rows import RowEngine, row_engine
from headwater.gradient.scope import Scope, find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.gradient.team import plan_work, row_engines
from headwater.gradient.transform import AdamUpdate, SecondMoment, Transform
from headwater.index.files import read_parts, table_path
from headwater.index.read import StoredIndex
from headwater.index.spec import IndexSpec
from headwater.index.table import read_column
from headwater.index.write import Part, ShardData, Writer
from headwater.model import measures
from headwater.model.session import Session, load_session
from headwater.progress import say, track
from headwater.recipe import DataOptions, IndexRecipe, ModelOptions, TransformOptions
from headwater.training.optimizer import read_adam
from headwater.types import DataError, Example, Layout, Measure

PILOT_ROWS = 3
PILOT_CANDIDATES = 256
IN_MEMORY = "<in memory>"


@dataclass(frozen=True)
class Plan:
    """What an index of this model and scope will hold, settled before any long work."""

    layout: Layout
    scope: Scope
    check: CaptureCheck


def index_corpus(recipe: IndexRecipe, run: Path, *, session: Session, corpus: Corpus, append: bool = False) -> StoredIndex:
    """One index, whatever members the recipe asks for: a new one, or what is missing of one, or (with `append`) one more corpus in it."""
    plan = settle(recipe, session, corpus.examples)
    transform = open_transform(recipe.transform, session)
    writer = Writer.open(run, _spec(recipe, session, plan.layout, transform))
    part = writer.begin(corpus.fingerprint, len(corpus), append=append)
    _write_records(run, part, recipe, session, corpus, plan)
    fill(writer, part, _numbered(writer, part, corpus), session, plan.layout, recipe.engine.token_budget, transform)
    return StoredIndex.open(run)


def open_session(options: ModelOptions, *, tokenizer: Any = None) -> Session:
    """`tokenizer` stands in for the model's own, where it is at hand already."""
    values = options.model_dump()
    return load_session(values.pop("path"), tokenizer=tokenizer, **values)


def open_transform(options: TransformOptions, session: Session) -> Transform | None:
    """What becomes of each row's gradient, with the optimizer's state it needs; None where it stays what it is."""
    if options.kind == "none":
        return None
    state = read_adam(Path(str(options.optimizer)), session.model)
    return AdamUpdate(state) if options.kind == "adam" else SecondMoment(state)


def open_corpus(options: DataOptions, session: Session, data: Any = None) -> Corpus:
    """The rows as the model will see them. Their longest length is the model's own limit unless a smaller one is given."""
    return load_corpus(
        options.source if data is None else data,
        session.tokenizer,
        columns=options.columns,
        split=options.split,
        limit=options.limit,
        **encoding(options, session),
    )


def encoding(options: DataOptions, session: Session) -> dict[str, Any]:
    """What rows and queries must share, so that the same text gives the same tokens."""
    limits = [limit for limit in (options.max_length, session.max_length) if limit is not None]
    labels = session.network.config.label2id if session.task == "sequence-classification" else None
    return {
        "chat_template": options.chat_template,
        "loss_on": options.loss_on,
        "max_length": min(limits) if limits else None,
        "label2id": labels,
    }


def settle(recipe: IndexRecipe, session: Session, examples: Sequence[Example]) -> Plan:
    """Scope and layout, with every block's capture held against autograd on a few short rows. Raises DataError where none can be."""
    session.require_padding()
    scope = find_scope(session.model, include=recipe.scope.include, exclude=recipe.scope.exclude)
    spec = SketchSpec(rank=recipe.sketch.rank, whole_below=recipe.sketch.whole_below, seed=recipe.sketch.seed)
    pilot = _pilot_rows(session, make_layout(session.model, scope, spec), examples)
    rows, singles = collate(pilot, pad_id=session.pad_id), [collate([example], pad_id=session.pad_id) for example in pilot]
    layout, scope, check = checked_layout(session, scope, spec, rows, singles, measures.LOSS)
    for name in check.wrong:
        say(f"out of scope: {name} (captured gradient differs from autograd's by {check.errors[name]:.1e})")
    if not layout.blocks:
        raise DataError(
            f"no gradient of {session.name} could be captured as autograd gives it ({len(check.wrong)} tensors tried). "
            "Likely cause: an architecture that headwater does not know, or a dtype too coarse for it; try --dtype float32."
        )
    return Plan(layout, scope, check)


def _pilot_rows(session: Session, layout: Layout, examples: Sequence[Example]) -> list[Example]:
    """The shortest rows with a finite gradient: a bad row says nothing of how a gradient is captured."""
    candidates = sorted(examples[:PILOT_CANDIDATES], key=lambda example: (example.n_tokens, example.id))
    found: list[Example] = []
    with row_engine(session, layout) as engine:
        for start in range(0, len(candidates), PILOT_ROWS):
            some = candidates[start : start + PILOT_ROWS]
            rows = engine.rows(collate(some, pad_id=session.pad_id), measures.LOSS)
            finite_B = (rows.value_B.isfinite() & rows.gradient_BD.isfinite().all(1)).tolist()
            found += [example for example, finite in zip(some, finite_B, strict=True) if finite]
            if len(found) >= PILOT_ROWS:
                break
    if not found:
        raise DataError(
            f"none of the first {len(candidates)} rows has a gradient that is a finite number. Likely cause: weights of {session.name} "
            f"that are NaN or infinite, or overflow in {session.dtype}; check the checkpoint, or load it with --dtype float32."
        )
    return found[:PILOT_ROWS]


def _spec(recipe: IndexRecipe, session: Session, layout: Layout, transform: Transform | None) -> IndexSpec:
    facts: dict[str, Any] = {"model": session.fingerprint, "task": session.task, "model_dtype": str(session.dtype)}
    facts |= {"measure": loss_of(transform).name, **({} if transform is None else {"transform": transform.describe()})}
    return IndexSpec(
        layout=layout,
        dtype=recipe.store.dtype,
        hidden_size=session.hidden_size,
        shard_rows=recipe.store.shard_rows,
        facts=facts,
        extra=describe_features(session, rept_layer=recipe.store.rept_layer),
    )


def _numbered(writer: Writer, part: Part, corpus: Corpus) -> Sequence[Example]:
    """Copies of rows that earlier parts hold get the next numbers."""
    earlier = [shard for record in read_parts(writer.run) if record.rows.start < part.rows.start for shard in record.shards]
    ids = (row_id for rows in earlier for row_id in read_column(table_path(writer.run, rows), "id").tolist())
    return number_copies(corpus.examples, count_copies(ids))


def loss_of(transform: Transform | None) -> Measure:
    """Whose gradient a row carries, or has transformed."""
    return measures.LOSS if transform is None else transform.loss


def fill(
    writer: Writer,
    part: Part,
    examples: Sequence[Example],
    session: Session,
    layout: Layout,
    token_budget: int,
    transform: Transform | None = None,
) -> None:
    """Compute and write every shard of the part that is not committed yet: one is written while the next is computed.

    On a processor as many batches are computed side by side as there are threads and `token_budget` has room for.
    """
    missing = part.missing()
    if not missing:
        return
    chosen = [[examples[row - part.rows.start] for row in rows] for rows in missing]
    plans = [plan_work(session, [example.n_tokens for example in shard], token_budget) for shard in chosen]
    lengths = [example.n_tokens for example in examples]  # of all: a run that goes on has the workers that it had, and the same bytes
    options = {"transform": transform, "extra": writer.spec.extra}
    with row_engines(session, layout, lengths, token_budget, **options) as engines, ThreadPoolExecutor(1) as writing:

        def work() -> Iterator[None]:
            written: Future[None] | None = None
            for rows, shard, plan in zip(missing, chosen, plans, strict=True):
                data = _Filling(shard, writer.spec, loss_of(transform))
                yield from engines.each(plan, partial(data.put, session.pad_id))
                shard_data = writer.prepare(rows, data.shard())  # computed here: two teams of threads would wait for each other
                if written is not None:
                    written.result()  # one shard waits at most, and what went wrong in it is raised here
                written = writing.submit(writer.commit, shard_data)
            if written is not None:
                written.result()

        n_rows = sum(len(rows) for rows in missing)
        for _ in track(work(), total=sum(map(len, plans)), description=f"indexing {n_rows:,} rows"):
            pass


class _Filling:
    """The rows of one shard, in their own order, while its batches come in theirs."""

    def __init__(self, examples: Sequence[Example], spec: IndexSpec, loss: Measure) -> None:
        n = len(examples)
        self.examples, self.layout, self.loss = examples, spec.layout, loss
        self.gradient_ND = torch.empty(n, spec.layout.size)
        self.first_NH, self.response_NH = torch.empty(n, spec.hidden_size or 0), torch.empty(n, spec.hidden_size or 0)
        self.extra = {name: torch.empty(n, int(about["width"])) for name, about in spec.extra.items()}
        self.loss_N = np.empty(n)

    def put(self, pad_id: int, engine: RowEngine, positions: Sequence[int]) -> None:
        rows = engine.rows(collate([self.examples[i] for i in positions], pad_id=pad_id), self.loss)
        where = torch.tensor(positions)
        self.gradient_ND[where] = rows.gradient_BD.float().cpu()
        self.first_NH[where] = rows.representation_BH.float().cpu()
        self.response_NH[where] = rows.representation_response_BH.float().cpu()
        for name, values_BK in rows.extra.items():
            self.extra[name][where] = values_BK.float().cpu()
        self.loss_N[positions] = rows.value_B.double().cpu().numpy() * [self._per_mean(self.examples[i]) for i in positions]

    def _per_mean(self, example: Example) -> int:
        """The table's loss is a sum over targets, whatever loss the gradient is of."""
        return max(1, example.n_loss_tokens) if self.loss.name == "mean_loss" else 1

    def shard(self) -> ShardData:
        columns = example_columns(self.examples)
        return ShardData(
            self.gradient_ND,
            block_norms(self.gradient_ND, self.layout),
            {**columns, "loss": self.loss_N.tolist()},
            self.first_NH,
            self.response_NH,
            self.extra,
        )


def block_norms(gradient_ND: Tensor, layout: Layout) -> Tensor:
    """[N, K] the norm of each block of a row."""
    ends = layout.offsets
    return torch.stack([gradient_ND[:, a:b].norm(dim=1) for a, b in itertools.pairwise(ends)], dim=1)


def example_columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """The row table of these examples, but for what only the model knows."""
    return {
        "id": [e.id for e in examples],
        "prompt": [e.prompt for e in examples],
        "response": [e.response for e in examples],
        "group": [e.group for e in examples],
        "source": [e.source for e in examples],
        "row": [e.row for e in examples],
        "label": [e.label for e in examples],
        "n_tokens": [e.n_tokens for e in examples],
        "n_loss_tokens": [e.n_loss_tokens for e in examples],
        "truncated": [bool(e.meta.get("truncated", False)) for e in examples],
    }


def _write_records(run: Path, part: Part, recipe: IndexRecipe, session: Session, corpus: Corpus, plan: Plan) -> None:
    """run.json, recipe.yaml and corpus.json of the first corpus; the same with the part's number for those appended to it. Written once."""
    number = sum(record.rows.start < part.rows.start for record in read_parts(run)) + 1
    remove_left_overs(run)
    suffix = "" if number == 1 else f"-{number}"
    if (run / f"run{suffix}.json").exists():
        return
    write_json(run / f"corpus{suffix}.json", corpus.report.to_json())
    write_atomically(run / f"recipe{suffix}.yaml", recipe.to_yaml().encode())
    write_json(run / f"run{suffix}.json", _record(recipe, session, corpus, plan, part, append=number > 1))


def _record(recipe: IndexRecipe, session: Session, corpus: Corpus, plan: Plan, part: Part, *, append: bool) -> dict[str, Any]:
    return {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "append": append,
        "recipe": recipe.model_dump(mode="json"),
        "session": session.describe(),
        "model_fingerprint": part.spec.facts["model"],
        "corpus_fingerprint": corpus.fingerprint,
        "scope": plan.scope.to_json(),
        "layout": {"fingerprint": plan.layout.fingerprint, "numbers_per_row": plan.layout.size, "blocks": len(plan.layout.blocks)},
        "capture_check": {"largest_relative_error": plan.check.largest, "tolerance": plan.check.tolerance},
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Versions and what else the numbers may depend on in their last digits."""
    from importlib.metadata import version

    names = ("headwater", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    return {
        "versions": {name: version(name) for name in names},
        "git": _git_revision(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _git_revision() -> str | None:
    """The commit of the source tree that this package runs from; None for an installed one."""
    head = Path(__file__).parents[3] / ".git"
    try:
        ref = (head / "HEAD").read_text().strip()
        return ref if not ref.startswith("ref: ") else (head / ref.removeprefix("ref: ")).read_text().strip()
    except OSError:
        return None
