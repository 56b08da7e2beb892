"""The study: every task, trained and measured, part by part, into one folder that can be gone on with."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from headwater.atomic import read_json, write_json
from headwater.progress import quiet, say, track
from headwater.report.study import write_page
from headwater.study.answer import answers
from headwater.study.base import prepare_base
from headwater.study.cells import Cell, to_frame, write_parquet
from headwater.study.claims import claims
from headwater.study.models import Model, find
from headwater.study.parts import registry as parts
from headwater.study.parts.part import Outcome, Part, place
from headwater.study.tasks import registry as tasks
from headwater.study.tasks import released
from headwater.study.world import QUICK, Size, World
from headwater.truth.workers import worker_pool
from headwater.types import DataError, HeadwaterError, UsageError

FORMAT = 1
STUDY, CELLS = "study.json", "cells.parquet"
POLL_S = 1.0


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study left: `record` is study.json as it is written."""

    out: Path
    record: dict[str, Any]
    page: Path

    @property
    def cells(self) -> list[Cell]:
        return [Cell.from_json(cell) for cell in self.record["cells"]]

    def to_pandas(self) -> Any:
        """One line a cell."""
        return to_frame(self.cells)

    def to_json(self) -> dict[str, Any]:
        return {**self.record, "out": str(self.out), "report": str(self.page)}

    def __str__(self) -> str:
        empty = sum(cell["value"] is None for cell in self.record["cells"])
        lines = [f"{self.out}: {len(self.record['worlds'])} worlds, {len(self.record['cells'])} cells, {empty} of them empty"]
        for one in self.record["answers"]:
            lines += [
                f"{one['task']} ({one['model']})",
                *(f"  trust   {line}" for line in one["trust"]),
                *(f"  beware  {line}" for line in one["beware"]),
            ]
        return "\n".join([*lines, *(f"{one['verdict']:<17} {one['name']}" for one in self.record["claims"])])


def study(
    out: str | Path,
    *,
    task_names: Sequence[str] = (),
    model: str | Model = "tiny",
    data: str | Path | None = None,
    text: str | Path | None = None,
    seeds: int = 1,
    part_names: Sequence[str] = (),
    is_quick: bool = False,
    processes: int | None = None,
    command: str = "",
    **size: Any,
) -> StudyResult:
    """Measure every part on every task with every seed, and write `study.json`, `cells.parquet` and a page into `out`.

    `task_names` are those of the makers (all where not given) or, with `data`, of the released sets in that folder. `model` is a preset, a
    folder or a hub id. `text` is a file of running text that the tiny model is pretrained on beside the tasks' own. `size` are fields of
    `Size` that differ from the default (or from the quick one). What is in `out` already is not done again; a part that failed is tried
    again. A part or a world that fails leaves empty cells that say why, and the rest goes on.

    Raises UsageError for names or sizes that there are not, IntegrityError where `out` is of another study.
    """
    start, out = time.monotonic(), Path(out).resolve()
    _quieten()
    chosen = find(model) if isinstance(model, str) else model
    whole = _size(is_quick, size)
    named = list(part_names) or parts.names()
    for name in named:
        parts.get(name)
    worlds = _worlds(out, chosen, whole, seeds, task_names, None if data is None else Path(data), None if text is None else Path(text))
    processes = processes or min(len(worlds), max(1, (os.cpu_count() or 1)))
    _run_all(worlds, named, processes)
    record = _record(out, worlds, whole, command, time.monotonic() - start)
    write_json(out / STUDY, record)
    write_parquet([Cell.from_json(cell) for cell in record["cells"]], out / CELLS)
    return StudyResult(out, record, write_page(out))


def _size(is_quick: bool, changes: dict[str, Any]) -> Size:
    plain = QUICK if is_quick else Size()
    if unknown := sorted(set(changes) - set(asdict(plain))):
        raise UsageError(f"there is no size {unknown[0]!r}; there are: {', '.join(asdict(plain))}")
    wrong = [name for name, value in changes.items() if not (isinstance(value, int | float) and value > 0)]
    if wrong:
        raise UsageError(f"{wrong[0]} is {changes[wrong[0]]!r}, expected a number above 0")
    return replace(plain, **{name: type(getattr(plain, name))(value) for name, value in changes.items()})


# --------------------------------------------------------------------------------------------------------------- worlds


def _worlds(
    out: Path, model: Model, size: Size, seeds: int, task_names: Sequence[str], data: Path | None, text: Path | None
) -> list[World]:
    """The folders of all tasks and seeds, with the model that they start from made where it has to be."""
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}, expected 1 or more")
    if data is None:
        names = list(task_names) or tasks.names()
        makers = [tasks.get(name) for name in names]
        made = {name: [maker.make(seed=seed, share=size.share, n_queries=size.queries) for seed in range(seeds)]
                for name, maker in zip(names, makers, strict=True)}  # fmt: skip
        every = [tasks.get(name) for name in tasks.names()]
        n = size.pretraining_texts // len(every)
        texts = [one for maker in every for one in maker.texts(seed=0, n=n)]
    else:
        found = released.find(data, share=size.share, n_queries=size.queries)
        if unknown := [name for name in task_names if name not in found]:
            raise UsageError(f"there is no data set {unknown[0]!r} in {data}; there are: {', '.join(found)}")
        made = {name: [found[name]] * seeds for name in (task_names or found)}
        texts = [row.prompt for one in made.values() for row in one[0].rows]
    texts += [] if text is None else _pieces(text)
    unfit = [name for name, of in made.items() if model.task == "sequence-classification" and of[0].family != "class"]
    if unfit:
        raise UsageError(f"{model.name} is a classifier, and {', '.join(unfit)} asks for text: choose among the tasks of classes (--tasks)")
    bases = {name: prepare_base(model, out / "base", size=size, texts=texts, task=of[0]) for name, of in made.items()}
    return [
        World(out / "worlds" / f"{name}-{seed}", task, model, bases[name], size, seed)
        for seed in range(seeds)
        for name, of in made.items()
        for task in [of[seed]]
    ]


def _pieces(path: Path) -> list[str]:
    """Paragraphs of a file of running text."""
    if not path.is_file():
        raise UsageError(f"--text {path}: no such file")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"--text {path} is no UTF-8 text ({error}): give a plain text file, a paragraph a line") from error


# ------------------------------------------------------------------------------------------------------------- measuring


def part_path(world: World, name: str) -> Path:
    return world.folder / "parts" / f"{name}.json"


def _run_all(worlds: Sequence[World], named: Sequence[str], processes: int) -> None:
    for world in worlds:
        world.claim()
    paths = [part_path(world, name) for world in worlds for name in named]
    for path in paths:
        if path.exists() and read_json(path, way_out="Remove it to measure this part again.").get("failed"):
            path.unlink()
    left = [world for world in worlds if not all(part_path(world, name).exists() for name in named)]
    done = sum(path.exists() for path in paths)
    if done:
        say(f"{done} of {len(paths)} parts are in {worlds[0].folder.parent.parent} already")
    if not left:
        return
    missing = [path for path in paths if not path.exists()]
    if processes == 1:
        steps = itertools.chain.from_iterable(measure(world, named) for world in left)
        for _ in track(steps, total=len(missing), description="study"):
            pass
        return
    with worker_pool(processes, _begin) as pool:
        futures = [pool.submit(_measure_quietly, world, tuple(named)) for world in left]
        for _ in track(_as_they_come(futures, missing), total=len(missing), description="study"):
            pass
        for future in futures:
            future.result()


def _as_they_come(futures: Sequence[Future[None]], missing: Sequence[Path]) -> Iterator[Path]:
    """Each part's file once it is there, until all worlds are done. A process that was killed is raised for."""
    waiting, running = list(missing), set(futures)
    while running:
        ended, running = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
        there = [path for path in waiting if path.exists()]
        waiting = [path for path in waiting if path not in there]
        yield from there


def _begin() -> None:
    """Of a process: the models are small, and one thread of each is quickest."""
    _quieten()
    torch.set_num_threads(1)


def _quieten() -> None:
    """The libraries' own bars and notices would drown the study's."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _measure_quietly(world: World, named: Sequence[str]) -> None:
    with quiet(), open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        for _ in measure(world, named):
            pass


def measure(world: World, named: Sequence[str]) -> Iterator[Path]:
    """Train, index, then part by part; what has a file is not measured again."""
    failed = ""
    try:
        with quiet():
            world.prepare()
    except Exception as error:
        failed = f"the model could not be trained or indexed: {told(error)}"
    for name in named:
        path = part_path(world, name)
        if not path.exists():
            with quiet():
                write_json(path, outcome_of(parts.get(name), world, failed))
            yield path


def outcome_of(part: Part, world: World, failed: str = "") -> dict[str, Any]:
    """What a part leaves, as JSON. Where it does not fit or fails: one empty cell that says why."""
    here, start = place(part, world), time.monotonic()
    if failed:
        return {**Outcome([here.missing("", "", failed)]).to_json(), "failed": failed}
    try:
        if because := part.unfit(world):
            return Outcome([here.missing("", "", because)]).to_json()
        return replace(part(world), seconds=time.monotonic() - start).to_json()
    except Exception as error:
        say(f"{world.folder.name}: {part.name} failed: {told(error)}")
        (world.folder / f"{part.name}-error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return {**Outcome([here.missing("", "", f"failed: {told(error)}")]).to_json(), "failed": told(error)}


def told(error: Exception) -> str:
    return str(error) if isinstance(error, HeadwaterError) else f"{type(error).__name__}: {error}"


# ------------------------------------------------------------------------------------------------------------- the record


def _record(out: Path, worlds: Sequence[World], size: Size, command: str, seconds: float) -> dict[str, Any]:
    """Of everything in the folder: these worlds with all their parts, whichever this call asked for, and those of earlier calls."""
    before = read_json(out / STUDY, way_out="Remove it; the next call writes it anew.") if (out / STUDY).exists() else {}
    found = [_found(world) for world in worlds]
    made = [_world_record(world, of_world, out) for world, of_world in zip(worlds, found, strict=True)]
    cells = [cell for of_world in found for part in of_world.values() for cell in part["cells"]]
    here = {_key(one) for one in made}
    earlier = [one for one in before.get("worlds", ()) if _key(one) not in here]
    cells = [*(cell for cell in before.get("cells", ()) if _key(cell) not in here), *cells]
    models = {model["name"]: model for model in before.get("models", ())}
    models |= {world.model.name: asdict(world.model) | {"lora": world.model.lora.model_dump()} for world in worlds}
    typed = [Cell.from_json(cell) for cell in cells]
    return {
        "format": FORMAT,
        "command": command or " ".join(["headwater", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("headwater", "torch", "transformers", "peft")},
        "python": platform.python_version(),
        "seconds": round(before.get("seconds", 0.0) + seconds, 1),
        "size": asdict(size),
        "models": list(models.values()),
        "worlds": [*earlier, *made],
        "cells": cells,
        "claims": [claim.to_json() for claim in claims(typed)],
        "answers": [answer.to_json() for answer in answers(typed)],
    }


def _key(one: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of the record of a world, or of a cell: the world that it is of."""
    return one["task"], one["model"], one["seed"]


def _found(world: World) -> dict[str, dict[str, Any]]:
    """What each part that was measured left."""
    paths = {name: part_path(world, name) for name in parts.names()}
    return {name: read_json(path, way_out="Remove it to measure this part again.") for name, path in paths.items() if path.exists()}


def _world_record(world: World, found: Mapping[str, dict[str, Any]], out: Path) -> dict[str, Any]:
    task, heat = world.task, world.folder / "heat.npz"
    return {
        "task": task.name,
        "family": task.family,
        "model": world.model.name,
        "seed": world.seed,
        "source": task.source,
        "n_rows": len(task.rows),
        "n_queries": len(task.queries),
        "k": task.k or len(task.rows) // max(1, len(task.classes)),
        "classes": task.classes,
        "epochs": world.epochs,
        "size": asdict(world.size),
        "seconds": world.stage_seconds,
        "parts": {name: part["seconds"] for name, part in found.items()},
        "findings": [finding for part in found.values() for finding in part["findings"]],
        "plots": [{"part": name, **plot} for name, part in found.items() for plot in part["plots"]],
        "facts": {name: part["facts"] for name, part in found.items() if part["facts"]},
        "heat": str(heat.relative_to(out)) if heat.exists() else None,
    }


def listing() -> dict[str, Any]:
    """What there is: tasks, models, parts, sizes. For `headwater study --list`."""
    from headwater.study.models import table as model_table

    return {"tasks": list(tasks.table()), "models": list(model_table()), "parts": list(parts.table()), "size": asdict(Size()),
            "quick": asdict(QUICK)}  # fmt: skip
