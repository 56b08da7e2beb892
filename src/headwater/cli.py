"""The command line. Each verb is a thin layer over one function of the library; torch is imported by the verb, never by `--help`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from headwater.recipe import IndexRecipe, TraceRecipe

app = typer.Typer(
    help="Find the training examples behind a language model's output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, the last line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
Config = Annotated[Path | None, typer.Option("--config", help="A YAML recipe; flags win over it.", exists=True, dir_okay=False)]
Override = Annotated[list[str] | None, typer.Option("--set", help="Any option of the recipe by dotted name: --set sketch.rank=32.")]
Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A folder as save_pretrained writes it, an adapter's folder, or a hub id.")
]
Data = Annotated[str | None, typer.Argument(metavar="DATA", help="jsonl, csv or parquet file, save_to_disk folder, or hub id.")]
Columns = Annotated[str | None, typer.Option(help="prompt=...,response=... or messages=... or text=...[,label=...].")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set or save_to_disk folder.")]
Limit = Annotated[int | None, typer.Option(help="First so many rows only.")]
LossOn = Annotated[str | None, typer.Option("--loss-on", help="response (default) or all.")]
Template = Annotated[str | None, typer.Option("--chat-template", help="Jinja text or file; 'none' for no template.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Tokens of a row; longer ones keep their beginning.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub model.")]
Adapter = Annotated[str | None, typer.Option(help="A PEFT adapter on top of the model.")]
Merge = Annotated[bool | None, typer.Option("--merge", help="Fold the adapter into the weights and explain those.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16, float16 or float64: the model's.")]
Task = Annotated[str | None, typer.Option(help="causal-lm or sequence-classification; read from the config where not given.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...")]
Include = Annotated[list[str] | None, typer.Option(help="Shell pattern of parameter names in scope; may be repeated.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Shell pattern of parameter names left out; may be repeated.")]
Rank = Annotated[int | None, typer.Option("--sketch-rank", help="Numbers kept on each side of a block (default 16).")]
Seed = Annotated[int | None, typer.Option("--sketch-seed", help="Seed of the sketch.")]
StoreDtype = Annotated[str | None, typer.Option("--store", help="bfloat16 (default), float32 or int8: the stored rows'.")]
ShardRows = Annotated[int | None, typer.Option("--shard-rows", help="Rows of a shard (default 512): what a crash can cost.")]
FromRun = Annotated[
    Path | None,
    typer.Option("--from-run", help="Output folder of a Hugging Face Trainer: its final model, and members from its checkpoints."),
]
Members = Annotated[
    list[str] | None,
    typer.Option("--members", help="checkpoint (default with --from-run), base, seed, adam, second_moment; commas or repeated."),
]
Base = Annotated[str | None, typer.Option("--base", help="The model before fine-tuning, for --members base.")]
Seeds = Annotated[list[str] | None, typer.Option("--sketch-seeds", help="For --members seed: one member for each; commas or repeated.")]
SeedModels = Annotated[list[str] | None, typer.Option("--seed-model", help="A model of another training run for each of --sketch-seeds.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="CHECK", help="This check only; commas or repeated.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Minutes: checks run cheapest first, and what does not fit is unknown.")]
Tokens = Annotated[int | None, typer.Option("--token-budget", help="Tokens in flight, padding included (default 2048).")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the demo's run.")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="Changes data, model and training.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a tiny model with a planted cause, trace and audit it, remove the culprits, train again, and show what changed."""
    from headwater import api
    from headwater.demo.run import run_demo

    with _progress(quiet):
        result = run_demo(out, seed=seed)
    if json_:
        _print_json(result.to_json())
        return
    _show_trace(api.load(result.run).newest())
    for query in result.queries:
        typer.echo(f"{query.id}: {query.verdict}" + ("" if query.probability is None else f" ({query.probability:.2f})"))
    typer.echo(f"{result.seconds:.0f} s; report: {result.report}")


@app.command()
def index(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run folder to write.")],
    model: Model = None,
    data: Data = None,
    append: Annotated[bool, typer.Option("--append", help="Add these rows to the index that is there.")] = False,
    columns: Columns = None, split: Split = None, limit: Limit = None, loss_on: LossOn = None, chat_template: Template = None,
    max_length: MaxLength = None, revision: Revision = None, adapter: Adapter = None, merge: Merge = None, dtype: Dtype = None,
    task: Task = None, device: Device = None, include: Include = None, exclude: Exclude = None, sketch_rank: Rank = None,
    sketch_seed: Seed = None, store: StoreDtype = None, shard_rows: ShardRows = None, token_budget: Tokens = None,
    from_run: FromRun = None, members: Members = None, base: Base = None, sketch_seeds: Seeds = None, seed_model: SeedModels = None,
    config: Config = None, override: Override = None, json_: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Index a corpus: one pass over the rows, resumed where an earlier call stopped."""
    recipe = _index_recipe(ctx)
    from headwater.index.member_files import read_members
    from headwater.index.plan import size_text
    from headwater.index.run import build_index

    with _progress(quiet):
        stored = build_index(recipe, out, append=append)
    n_bytes = sum(path.stat().st_size for path in (out / "index" / "shards").iterdir())
    made = [record.to_json() for record in read_members(out)]
    if json_:
        facts = {"rows": len(stored), "bad": stored.n_bad, "numbers_per_row": stored.layout.size, "bytes": n_bytes, "members": made}
        _print_json({"run": str(out), **facts})
        return
    bad = f", {stored.n_bad} of them bad (gradient not finite: never ranked)" if stored.n_bad else ""
    typer.echo(f"{out}: {len(stored):,} rows{bad}, {stored.layout.size:,} numbers a row, {size_text(n_bytes)}")
    _show_members(made)
    typer.echo(f"next: headwater trace {out} --prompt '...' --response '...'")


@app.command()
def plan(
    ctx: typer.Context, model: Model = None, data: Data = None,
    columns: Columns = None, split: Split = None, limit: Limit = None, loss_on: LossOn = None, chat_template: Template = None,
    max_length: MaxLength = None, revision: Revision = None, adapter: Adapter = None, merge: Merge = None, dtype: Dtype = None,
    task: Task = None, device: Device = None, include: Include = None, exclude: Exclude = None, sketch_rank: Rank = None,
    sketch_seed: Seed = None, store: StoreDtype = None, shard_rows: ShardRows = None, token_budget: Tokens = None,
    from_run: FromRun = None, members: Members = None, base: Base = None, sketch_seeds: Seeds = None, seed_model: SeedModels = None,
    config: Config = None, override: Override = None, json_: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Parameters in scope, disk, memory and time of an index, from a pilot of 20 rows. Writes nothing."""
    recipe = _index_recipe(ctx)
    from headwater.index.plan import plan_index, size_text, time_text

    with _progress(quiet):
        forecast = plan_index(recipe)
    if json_:
        _print_json(forecast.to_json())
        return
    typer.echo(f"rows        {forecast.rows:,} ({forecast.tokens:,} tokens, padding {forecast.padding_share:.0%} of a batch)")
    typer.echo(f"parameters  {forecast.parameters_in_scope:,} of {forecast.parameters:,} in scope")
    for group in forecast.outside:
        typer.echo(
            f"            {group['parameters']:,} out of scope in {group['tensors']} tensors: {group['reason']} ({group['names'][0]}, ...)"
        )
    typer.echo(
        f"disk        {size_text(forecast.disk_bytes)} ({forecast.numbers_per_row:,} numbers, {size_text(forecast.bytes_per_row)} a row)"
    )
    typer.echo(f"memory      {size_text(forecast.memory_bytes)}")
    typer.echo(f"time        {time_text(forecast.seconds)} (pilot: {forecast.pilot_rows} rows in {forecast.pilot_seconds:.2f} s)")
    if forecast.members:
        all_bytes, all_seconds = forecast.disk_bytes_with_members, forecast.seconds_with_members
        typer.echo(
            f"members     {len(forecast.members)}; with them {size_text(all_bytes)} and {time_text(all_seconds)}, at the main index's pace"
        )
        _show_members(forecast.members)


@app.command()
def check(
    ctx: typer.Context, model: Model = None, data: Data = None, only: Only = None, budget: Budget = None,
    columns: Columns = None, split: Split = None, limit: Limit = None, loss_on: LossOn = None, chat_template: Template = None,
    max_length: MaxLength = None, revision: Revision = None, adapter: Adapter = None, merge: Merge = None, dtype: Dtype = None,
    task: Task = None, device: Device = None, include: Include = None, exclude: Exclude = None, sketch_rank: Rank = None,
    sketch_seed: Seed = None, store: StoreDtype = None, shard_rows: ShardRows = None, token_budget: Tokens = None,
    from_run: FromRun = None, members: Members = None, base: Base = None, sketch_seeds: Seeds = None, seed_model: SeedModels = None,
    config: Config = None, override: Override = None, json_: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """What can be said of a model and rows before anything costly; exit code 1 where a finding fails. Writes nothing."""
    recipe = _index_recipe(ctx)
    from headwater.auditing import check_recipe

    with _progress(quiet):
        found = check_recipe(recipe, only=_parts(only), budget=budget)
    _show_audit(found.to_json(), json_=json_)
    if found.failed:
        raise typer.Exit(1)


@app.command()
def trace(
    run: RunFolder,
    prompt: Annotated[str | None, typer.Option(help="What the model was asked.")] = None,
    response: Annotated[str | None, typer.Option(help="The output to explain.")] = None,
    alternative: Annotated[str | None, typer.Option(help="A second response: explain why the first and not this one.")] = None,
    label: Annotated[str | None, typer.Option(help="The class to explain, for a classifier.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="A file of queries: prompt, response, and optionally alternative, span, label, id.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="A method, may be repeated; the first is the primary one.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Adds the embedding method with this encoder.")] = None,
    measure: Annotated[str | None, typer.Option(help="What is explained; by the kind of query where not given.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="Rows listed on each side (default 10).")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Take the scores of the primary method's first so many rows apart, token by token (default 0).")
    ] = None,
    reference: Annotated[int | None, typer.Option(help="Reference queries for the hub correction (default 128).")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html as well.")] = True,
    config: Config = None,
    override: Override = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Trace a model's output to the rows behind it, by every method, ranked and side by side."""
    given = _query_of(prompt, response, alternative, label)
    methods = dict.fromkeys(method) if method else None
    if methods and "embedding" in methods and encoder is None:
        _usage("the embedding method needs an encoder: name one with --encoder")
    flags = {"queries": queries, "measure": measure, "k": k, "tokens": tokens, "n_reference": reference, "methods": methods}
    recipe = _trace_recipe(config, flags, override, encoder=encoder)
    if (given is None) == (recipe.queries is None):
        _usage(
            "give one of the two: --prompt and --response (a classifier: --prompt and --label) for one query, or --queries FILE; "
            f"got {'neither' if given is None else 'both'}"
        )
    from headwater import api

    with _progress(quiet):
        traced = api.run_trace(run, recipe, given)
        page = traced.report() if report else None
    if json_:
        _print_json({"run": str(run), "trace": str(traced.folder), "report": page and str(page), **_brief(traced)})
        return
    _show_trace(traced)
    if n_bad := traced.record["n_bad"]:
        typer.echo(f"{n_bad:,} of {traced.record['n_train']:,} rows are bad (gradient not finite): no gradient method ranks them")
    if page:
        typer.echo(f"report: {page}")


@app.command()
def audit(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The run folder.")] = None,
    trace: Annotated[str | None, typer.Option(help="A trace's name (a folder in RUN/scores); the newest where not given.")] = None,
    budget: Budget = None,
    only: Only = None,
    base: Annotated[str | None, typer.Option("--base", help="The model before fine-tuning; the run's own where it says.")] = None,
    validation: Annotated[Path | None, typer.Option(help="A file of rows of the same kind that were not trained on.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="How the model was trained, as YAML: epochs, lr, ...; the run's Trainer's where not given."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only list the checks: what each measures and needs.")] = False,
    report: Annotated[bool, typer.Option(help="Write report.html as well.")] = True,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what could be wrong with a trace, and say of each query whether it can be believed; exit code 1 where a finding fails."""
    if list_:
        _list_checks(json_=json_)
        return
    if run is None:
        _usage("which run? `headwater audit RUN`, or `headwater audit --list` for the checks that there are")
    from headwater.auditing import audit as audit_run
    from headwater.recipe import read_yaml
    from headwater.report import write_report

    training = None if recipe is None else read_yaml(recipe)
    with _progress(quiet):
        found = audit_run(run, trace=trace, budget=budget, only=_parts(only), base=base, validation=validation, training=training)
    page = write_report(run, trace=found.trace) if report and found.trace is not None else None
    _show_audit({**found.to_json(), "report": page and str(page)}, json_=json_)
    if page and not json_:
        typer.echo(f"report: {page}")
    if found.failed:
        raise typer.Exit(1)


@app.command()
def study(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The study's folder; what is in it already is not done again.")] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="These tasks only; commas or repeated.")] = None,
    model: Annotated[str, typer.Option(help="A preset (see --list), a folder or a hub id.")] = "tiny",
    data: Annotated[Path | None, typer.Option(help="A folder of the paper's released data, in place of the tasks that are made.")] = None,
    text: Annotated[Path | None, typer.Option(help="Running text that the tiny model is pretrained on beside the tasks' own.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds: other rows, another training.")] = 1,
    parts: Annotated[list[str] | None, typer.Option(help="These parts only; commas or repeated.")] = None,
    is_quick: Annotated[bool, typer.Option("--quick", help="Fewer rows and retrainings: some minutes.")] = False,
    override: Annotated[list[str] | None, typer.Option("--set", help="A size by name: --set halves=64 (see --list).")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Worlds at a time; the machine's cores where not given.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only list tasks, models, parts and sizes.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask whether influence functions work on a model: the paper's tasks, tables and causes, with controls, retraining and an answer."""
    if list_:
        _list_study(json_=json_)
        return
    if out is None:
        _usage("where to? `headwater study --out DIR`, or `headwater study --list` for what there is")
    from headwater.study.run import study as run_study

    with _progress(quiet):
        result = run_study(
            out, task_names=_parts(tasks) or (), model=model, data=data, text=text, seeds=seeds, part_names=_parts(parts) or (),
            is_quick=is_quick, processes=processes, **_sizes(override or ()),
        )  # fmt: skip
    if json_:
        _print_json(result.to_json())
    else:
        typer.echo(f"{result}\nreport: {result.page}")


@app.command()
def repair(
    run: RunFolder,
    queries: Annotated[Path, typer.Option(help="A file of anchors: outputs to make more likely. They choose the rows.")],
    held_out: Annotated[Path, typer.Option("--held-out", help="A file of other outputs of the same kind: they judge.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder: the changed model and repair.json.")],
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of the steps.")],
    rows: Annotated[int, typer.Option(help="Rows to step on, the same number for each random control.")] = 10,
    steps: Annotated[int, typer.Option(help="Steps, each on all of these rows.")] = 10,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    harmful: Annotated[bool, typer.Option("--harmful", help="Step away from harmful rows, in place of towards helpful ones.")] = False,
    draws: Annotated[int, typer.Option(help="Random controls.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the random rows.")] = 0,
    method: Annotated[str | None, typer.Option(help="The method that chooses (default grad_cos).")] = None,
    measure: Annotated[str | None, typer.Option(help="What should grow; by the kind of query where not given.")] = None,
    config: Config = None,
    override: Override = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a few steps on the rows behind some outputs, and see on others what that did against random rows."""
    named = {method: None} if method else {"grad_cos": None} if config is None else None
    flags = {"measure": measure, "n_reference": 0, "queries": queries, "methods": named}
    recipe = _trace_recipe(config, flags, override, encoder=None)
    from headwater.recipe import RepairRecipe
    from headwater.repair import repair as repair_run

    kind = "harmful" if harmful else "helpful"
    how = {"lr": lr, "rows": rows, "steps": steps, "optimizer": optimizer, "kind": kind, "draws": draws, "seed": seed}
    with _progress(quiet):
        repaired = repair_run(run, recipe, RepairRecipe.parse(how), anchors=queries, held_out=held_out, out=out)
    if json_:
        _print_json({"out": str(out), **{name: value for name, value in repaired.record.items() if name != "random_rows"}})
    else:
        typer.echo(repaired)


@app.command()
def truth(
    run: RunFolder,
    queries: Annotated[Path | None, typer.Option(help="A file of queries; those of the newest trace where not given.")] = None,
    design: Annotated[
        str | None,
        typer.Option(help="half (default), share, leave-out, leave-each-out, leave-group-out, top, bottom, zero, random or all."),
    ] = None,
    subsets: Annotated[int | None, typer.Option(help="How many sets of rows (default 100).")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each set, with the seeds 0, 1, ... (default 3).")] = None,
    fraction: Annotated[float | None, typer.Option(help="Share of the rows in a set, for --design share.")] = None,
    k: Annotated[int | None, typer.Option("-k", help="Rows left out, for leave-out, top, bottom, zero and random.")] = None,
    by: Annotated[str | None, typer.Option(help="Column for leave-group-out: group (default), source, label.")] = None,
    scores: Annotated[Path | None, typer.Option(help="A .npy file with a number for each row, for top, bottom and zero.")] = None,
    design_seed: Annotated[int | None, typer.Option("--design-seed", help="Of the sets of rows.")] = None,
    start: Annotated[str | None, typer.Option(help="cold (default): from the base model; warm: from the final weights.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="The model before fine-tuning; the run's own where it says.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="How to train, as YAML: epochs, lr, batch_rows, lora, ...; the run's Trainer's where not given."),
    ] = None,
    measure: Annotated[str | None, typer.Option(help="What is measured; by the kind of query where not given.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each; the cores shared among them where not given.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The bank's folder; RUN/truth/DESIGN-START where not given.")] = None,
    config: Config = None,
    override: Override = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the model again on subsets of its rows, and keep what it says of each query: ground truth for any method's scores."""
    from headwater.recipe import TruthRecipe, read_yaml

    flags = {
        "queries": queries and str(queries), "measure": measure, "design.kind": design, "design.subsets": subsets, "design.k": k,
        "design.fraction": fraction, "design.by": by, "design.scores": scores and str(scores), "design.seed": design_seed,
        "seeds": seeds, "start": start, "base": base, "training": None if recipe is None else read_yaml(recipe),
    }  # fmt: skip
    asked = TruthRecipe.build(config=config, flags=flags, overrides=override or [])
    from headwater.retraining import truth_of_run

    with _progress(quiet):
        made = truth_of_run(run, asked, out=out, processes=processes, threads=threads)
    if json_:
        _print_json({"run": str(run), **made.to_json()})
    else:
        typer.echo(made)


@app.command()
def evaluate(
    scores: Annotated[
        Path,
        typer.Argument(metavar="SCORES", help="npy, csv, parquet or safetensors (rows: queries, columns: training rows), or a run folder."),
    ],
    bank: Annotated[Path | None, typer.Option(help="Outcomes of retraining, from `headwater truth`.")] = None,
    train_labels: Annotated[
        Path | None, typer.Option("--train-labels", help="csv, parquet or jsonl: a label for each training row.")
    ] = None,
    query_labels: Annotated[Path | None, typer.Option("--query-labels", help="The same for each query.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Their column (default: label).")] = None,
    mislabelled: Annotated[
        str | None, typer.Option(help="A column of true and false in --train-labels: do these rows score highest?")
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option(help="positive (default): high scores are proponents. negative: low ones are, as in an influence on the loss."),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="First rows looked at (default: training rows / classes).")] = None,
    hub_correct: Annotated[bool, typer.Option("--hub-correct", help="First take each training column's z-score over the queries.")] = False,
    against: Annotated[Path | None, typer.Option(help="Other scores of the same rows: paired differences and overlap.")] = None,
    method: Annotated[str | None, typer.Option(help="Of a run folder: whose scores; the primary one where not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstraps.")] = 0,
    json_: Json = False,
) -> None:
    """Hold any tool's scores against labels or retraining, with an interval on every figure."""
    if sign not in (None, "positive", "negative"):
        _usage(f"--sign is {sign!r}, expected positive or negative")
    from headwater.evaluate.files import Tables, evaluate_given
    from headwater.evaluate.summary import Options

    truth = None
    if bank is not None:
        from headwater.truth.bank import read_bank

        truth = read_bank(bank)
    tables = Tables(train_labels, query_labels, label_column, mislabelled)
    options = Options(k=k, hub_correct=hub_correct, seed=seed)
    result = evaluate_given(scores, tables, truth=truth, against=against, sign=sign, method=method, options=options)  # pyright: ignore[reportArgumentType]
    if json_:
        _print_json(result.to_json())
        return
    from rich.console import Console

    result.show(Console())


@app.command()
def report(
    run: RunFolder,
    trace: Annotated[str | None, typer.Option(help="A trace's name (a folder in RUN/scores); the newest where not given.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page; RUN/report.html where not given.")] = None,
    json_: Json = False,
) -> None:
    """Write the page of a trace: one file, no network."""
    from headwater.report import write_report

    page = write_report(run, trace=trace, out=out)
    if json_:
        _print_json({"report": str(page)})
    else:
        typer.echo(page)


@app.command()
def verify(
    run: RunFolder,
    repair: Annotated[
        bool, typer.Option("--repair", help="Withdraw damaged shards, so that `headwater index` makes just those again.")
    ] = False,
    json_: Json = False,
) -> None:
    """Hold every file of the index against its checksum and the record; exit code 3 where something is damaged."""
    from headwater.index.verify import verify as verify_run

    findings = verify_run(run, repair=repair)
    if json_:
        _print_json({"run": str(run), "findings": [finding.to_json() for finding in findings]})
    for finding in [] if json_ else findings:
        typer.echo(f"{finding.status:8}{finding.name}: {finding.because}" + (f" -> {finding.next_step}" if finding.next_step else ""))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(3)


@app.command()
def export(
    run: RunFolder,
    format_: Annotated[str, typer.Option("--format", help="csv, parquet or jsonl.")] = "csv",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; RUN/scores.FORMAT (exclude, groups) where not given.")] = None,
    method: Annotated[str | None, typer.Option(help="One method only.")] = None,
    exclude: Annotated[int | None, typer.Option(help="Instead of scores: the rows among the first so many of any query.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Instead of rows: sums over groups, by a column (source, label, group) or near_duplicates.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="A trace's name; the newest where not given.")] = None,
    json_: Json = False,
) -> None:
    """Scores, or a list of rows to leave out, as a file for other tools."""
    if format_ not in ("csv", "parquet", "jsonl"):
        _usage(f"--format is {format_!r}, expected csv, parquet or jsonl")
    from headwater.rank.export import export as export_scores
    from headwater.rank.export import newest_trace, trace_folder

    folder = newest_trace(run) if trace is None else trace_folder(run, trace)
    kind = "exclude" if exclude is not None else "groups" if by is not None else "scores"
    path = out or run / f"{kind}.{format_}"
    n = export_scores(run, folder, path, format=format_, method=method, exclude=exclude, by=by)  # pyright: ignore[reportArgumentType]
    if json_:
        _print_json({"path": str(path), "lines": n})
    else:
        typer.echo(f"{path}: {n:,} lines")


@app.command()
def replay(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the repetition goes; RUN-replay where not given.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do a run again from its record, and compare every shard and score byte by byte; exit code 3 where they differ."""
    from headwater.replay import replay as replay_run

    with _progress(quiet):
        result = replay_run(run, out or run.with_name(f"{run.name}-replay"))
    if json_:
        _print_json(result.to_json())
    else:
        typer.echo(f"{result.out}: {result.compared} files compared, {len(result.different)} differ")
        for name, why in result.skipped.items():
            typer.echo(f"not repeated: {name}: {why}")
        for name, (before, now) in result.environment_changes.items():
            typer.echo(f"since then changed: {name}: {before} -> {now}")
    if not result.identical:
        raise typer.Exit(3)


@app.command()
def methods(json_: Json = False) -> None:
    """What scores there are, what each needs and costs, and where it comes from."""
    from headwater.methods import table

    if json_:
        _print_json({"methods": table()})
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("method", "unit", "needs", "cost", "what it is", "source", box=None)
    for line in table():
        shown.add_row(
            line["name"],
            line["unit"] or "ranks only",
            ", ".join(line["needs"]) or "nothing",
            line["cost"],
            line["summary"],
            line["reference"],
        )
    Console().print(shown)


# ------------------------------------------------------------------------------------------------------- plumbing


def main() -> None:
    """Entry point: errors of ours become one line and an exit code; what was done before them is kept."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except SystemExit as done:
        if done.code == INTERRUPTED:
            typer.echo("\ninterrupted: what was committed is kept, the same command goes on from there", err=True)
        raise
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(code)


INTERRUPTED = 130  # what typer makes of Ctrl-C

FLAGS = {
    "model": "model.path", "revision": "model.revision", "adapter": "model.adapter", "merge": "model.merge", "dtype": "model.dtype",
    "task": "model.task", "device": "model.device", "data": "data.source", "columns": "data.columns", "split": "data.split",
    "limit": "data.limit", "loss_on": "data.loss_on", "chat_template": "data.chat_template", "max_length": "data.max_length",
    "include": "scope.include", "exclude": "scope.exclude", "sketch_rank": "sketch.rank", "sketch_seed": "sketch.seed",
    "store": "store.dtype", "shard_rows": "store.shard_rows", "token_budget": "engine.token_budget",
    "from_run": "members.from_run", "members": "members.roles", "base": "members.base", "sketch_seeds": "members.sketch_seeds",
    "seed_model": "members.seed_models",
}  # fmt: skip


def _index_recipe(ctx: typer.Context) -> IndexRecipe:
    """The recipe of a verb's arguments, whose names stand in `FLAGS`."""
    from headwater.recipe import IndexRecipe

    given = {name: None if value in ((), []) else value for name, value in ctx.params.items()}  # typer: no --include is an empty tuple
    if given["from_run"] is not None:
        given |= _from_run(given)
    for name in ("members", "sketch_seeds"):
        given[name] = _parts(given[name])
    flags = {option: given[flag] for flag, option in FLAGS.items()}
    return IndexRecipe.build(config=given["config"], flags=flags, overrides=given["override"] or [])


def _parts(values: Sequence[str] | None) -> list[str] | None:
    """What was given by commas or by repeating an option; None for nothing."""
    return [part for value in values or () for part in value.split(",")] or None


def _from_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """With --from-run a single argument is the data, and the model is the final one of the training."""
    if given["model"] is not None and given["data"] is not None:
        return {"from_run": str(given["from_run"])}
    from headwater.training.folder import TrainerFolder

    final = TrainerFolder.open(given["from_run"]).final
    return {"from_run": str(given["from_run"]), "data": given["data"] or given["model"], "model": str(final)}


def _trace_recipe(config: Path | None, flags: dict[str, Any], override: list[str] | None, *, encoder: str | None) -> TraceRecipe:
    """The recipe of `trace`: all the default methods where neither the flags nor a file name any."""
    from headwater.recipe import DEFAULT_METHODS, TraceRecipe, resolved

    named = flags["methods"] or (dict.fromkeys(DEFAULT_METHODS) if config is None else None)
    embedding = None if encoder is None else {"model": resolved(encoder)}
    queries = None if flags["queries"] is None else str(flags["queries"])
    flags = {**flags, "queries": queries, "methods": named, "methods.embedding": embedding}
    return TraceRecipe.build(config=config, flags=flags, overrides=override or [])


def _query_of(prompt: str | None, response: str | None, alternative: str | None, label: str | None) -> list[dict[str, str]] | None:
    fields = {"prompt": prompt, "response": response, "alternative": alternative, "label": label}
    given = {name: value for name, value in fields.items() if value is not None}
    if given and (prompt is None or (response is None and label is None)):
        _usage(f"the query has {' and '.join(given)} only: give --prompt and --response (a classifier: --prompt and --label)")
    return [given] if given else None


def _show_members(members: Sequence[Mapping[str, Any]]) -> None:
    for member in members:
        same = "; its model is the main index's, whose rows stand for it" if member["is_main"] else ""
        typer.echo(f"            {member['name']} ({member['role']}): {'; '.join(member['notes'])}{same}")


def _usage(message: str) -> NoReturn:
    from headwater.types import UsageError

    raise UsageError(message)


def _progress(quiet: bool) -> Any:
    from transformers.utils import logging

    from headwater.progress import quiet as quietly

    logging.disable_progress_bar()
    return quietly(quiet)


def _show_trace(traced: Any) -> None:
    from rich.console import Console

    from headwater.report.terminal import summary

    summary(traced.record, Console())


def _show_audit(record: dict[str, Any], *, json_: bool) -> None:
    if json_:
        _print_json(record)
        return
    from rich.console import Console

    from headwater.report.terminal import audit_summary

    audit_summary(record, Console())


def _list_checks(*, json_: bool) -> None:
    from headwater.audit.registry import table

    if json_:
        _print_json({"checks": table()})
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("check", "needs", "what it measures", "source", box=None)
    for line in table():
        shown.add_row(line["name"], ", ".join(line["needs"]) or "nothing", line["summary"], line["reference"])
    Console().print(shown)


def _sizes(overrides: Sequence[str]) -> dict[str, Any]:
    """`name=number`, as --set takes them."""
    found: dict[str, Any] = {}
    for override in overrides:
        name, sign, value = override.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            _usage(f"--set {override!r}: expected name=number, for example halves=32")
    return found


def _list_study(*, json_: bool) -> None:
    from headwater.study.run import listing

    found = listing()
    if json_:
        _print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    for what in ("tasks", "models", "parts"):
        shown = Table(what, "", box=None)
        for line in found[what]:
            shown.add_row(line["name"], line["summary"])
        Console().print(shown)
    shown = Table("cells of", "metrics", "methods", box=None)
    for line in found["parts"]:
        shown.add_row(line["name"], ", ".join(line["metrics"]), ", ".join(line["methods"]))
    Console().print(shown)
    shown = Table("size", "default", "--quick", box=None)
    for name, value in found["size"].items():
        shown.add_row(name, f"{value:g}", f"{found['quick'][name]:g}")
    Console().print(shown)


def _brief(traced: Any) -> dict[str, Any]:
    """The ranked ids and scores of a trace, without its texts."""
    queries = [
        {
            "id": query["id"],
            "measure_value": query["measure_value"],
            "top": {
                name: [{"id": row["id"], "score": row["score"], "q": row["q"]} for row in ranked["proponents"]]
                for name, ranked in query["ranked"].items()
            },
        }
        for query in traced.record["queries"]
    ]
    return {"measure": traced.record["measure"], "queries": queries}


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))


if __name__ == "__main__":
    main()
