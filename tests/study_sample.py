"""A small study as the command writes it: three tasks, two seeds, a few methods, empty cells, plots, heat maps, and hostile names."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headwater.study.answer import answers
from headwater.study.cells import Cell, Place
from headwater.study.claims import claims
from tests.report_sample import HOSTILE

TASKS = ("backdoor-1", "backdoor-5", "emotion")
SEEDS = (0, 1)
METHODS = ("grad_dot", "grad_cos", "datainf", "lissa_released", "fisher", "repsim", "repsim_response", "lexical", "random")
RIGHT = {"grad_dot": 0.55, "grad_cos": 0.8, "datainf": 0.6, "lissa_released": 0.55, "fisher": 0.75, "repsim": 0.97,
         "repsim_response": 0.99, "lexical": 0.9, "random": 0.25}  # fmt: skip
CAUSE = {"grad_dot": 0.3, "grad_cos": 0.42, "datainf": 0.33, "fisher": 0.46, "repsim": 0.12, "repsim_response": 0.5, "lexical": 0.3}
REASON = f"TRAK needs several models; this index has one. {HOSTILE[0]}"
N_QUERIES, N_ROWS, CLASSES = 12, 60, ("clean", "trigger <b>1</b>", "trigger 2")


@dataclass(frozen=True)
class At:
    """Makes cells of a place with intervals of a given half-width, clipped to 0 and 1."""

    place: Place

    def cell(self, method: str, metric: str, value: float, *, half: float = 0.06, variant: str = "", **facts: Any) -> Cell:
        made = self.place.cell(method, metric, value, variant=variant, n=40, over="queries", **facts)
        return replace(made, interval=(value - half, value + half)) if half else made


def share(value: float) -> float:
    return float(np.clip(value, 0.0, 1.0))


def sample_cells() -> list[Cell]:
    return [cell for task in TASKS for seed in SEEDS for cell in world_cells(task, seed)]


def world_cells(task: str, seed: int) -> list[Cell]:
    rng = np.random.default_rng([seed, len(task), ord(task[-1])])

    def at(part: str) -> At:
        return At(Place(task, "tiny", seed, part))

    def moved(value: float) -> float:
        return share(value + 0.03 * rng.standard_normal())

    hard = 0.2 if task == "backdoor-5" else 0.0
    cells = []
    for method in METHODS:
        value = RIGHT[method] - (hard if method in ("grad_dot", "datainf", "lissa_released") else 0.0)
        for metric, near in (("accuracy", value), ("cover", 0.8 * value), ("auroc", 0.5 + value / 2), ("average_precision", 0.9 * value)):
            cells.append(at("tables").cell(method, metric, moved(near)))
        cells.append(at("tables").cell(method, "hub_share", share(0.4 - 0.35 * value), half=0))
    cells += [at("tables").cell("tfidf", "accuracy", moved(0.9), variant=f"text={text}") for text in ("prompt", "response", "both")]
    cells += [at("tables").place.missing("trak", metric, REASON) for metric in ("accuracy", "cover")]
    if task != "emotion":
        for method, value in CAUSE.items():
            cells.append(at("truth").cell(method, "lds", value + 0.02 * rng.standard_normal(), half=0.07))
            cells.append(at("truth").cell(method, "accuracy", moved(RIGHT[method])))
        cells += [at("truth").cell("same class", "lds", 0.38), at("truth").cell("noise ceiling", "lds", 0.8)]
    for epoch in (2, 4, 6):
        for method in ("grad_dot", "datainf", "repsim"):
            swing = 0.2 * (-1) ** (epoch // 2) if method != "repsim" else 0.0
            cells.append(at("epochs").cell(method, "accuracy", moved(0.7 * RIGHT[method] + swing), variant=f"epoch={epoch}"))
        cells.append(at("epochs").cell("training rows", "loss", 2.0 / epoch, half=0.05, variant=f"epoch={epoch}", unit="nats"))
        for data, success in (("breaking", 0.3 * epoch / 2), ("ordinary", 0.02)):
            named = f"data={data}; epoch={epoch}"
            cells.append(at("behaviour").cell("training", "attack success", share(success), variant=named))
            cells.append(at("behaviour").cell("training", "parameter distance", 0.4 * epoch + 0.1 * rng.random(), half=0, variant=named))
    for number, mask in enumerate(("none", "prompt and padding")):
        for score in ("dot", "cosine"):
            for preconditioner in ("none", "datainf"):
                value = 0.3 + 0.2 * number + 0.3 * (score == "cosine") + 0.05 * (preconditioner == "datainf")
                cells.append(
                    at("ablation").cell(preconditioner, "accuracy", moved(value), variant=f"mask={mask}; score={score}; layers=sum")
                )
    for cause, points in (("padding", 0.2), ("hubs", 0.3), ("solver", 0.02), ("remaining", 0.1)):
        cells.append(at("ablation").cell("explained", "accuracy points", moved(points), variant=f"cause={cause}"))
    cells.append(at("solver").cell("theorem 1", "mean eigenvalue over damping", 40.0 + seed, half=0))
    cells.append(at("solver").cell("theorem 1", "rank over rows", 0.9, half=0))
    cells += [at("solver").cell("lissa_released", "rank correlation to dot", 0.999, half=0.0005)]
    cells += [at("gaps").cell(name, "mean size", 0.1 * k, unit="nats") for k, name in enumerate(("warm_start", "proximity"), start=1)]
    cells.append(at("new part").cell(HOSTILE[1], HOSTILE[2], 1.5, variant=f"option={HOSTILE[5]}"))
    return cells


def sample_world(task: str, seed: int) -> dict[str, Any]:
    finding = {"name": "lint: lexical", "status": "warn", "because": f"TF-IDF alone has an accuracy of 0.9. {HOSTILE[0]}", "value": 0.9,
               "unit": None, "interval": None, "n": 12, "next_step": "Read the tables beside `tfidf`."}  # fmt: skip
    own = {**finding, "name": "lint: splits", "status": "ok", "because": f"Seed {seed} has no row in both splits.", "next_step": None}
    series = {"name": "error", "x": [1.0, 10.0, 100.0], "y": [0.4, 0.2, 0.1 + 0.1 * seed], "low": [], "high": []}
    plot = {"part": "solver", "title": "A damping sweep", "x": "damping", "y": "error", "kind": "line", "log_x": True, "note": HOSTILE[4]}
    return {
        "task": task, "family": "backdoor" if "backdoor" in task else "class", "model": "tiny", "seed": seed, "source": "made",
        "n_rows": N_ROWS, "n_queries": N_QUERIES, "k": 20, "classes": list(CLASSES), "seconds": {"train": 4.2, "index": 1.5},
        "parts": {"tables": 3.0, "truth": 61.0}, "findings": [finding, own], "plots": [{**plot, "series": [series]}],
        "heat": f"worlds/{task}-{seed}/heat.npz" if seed == 0 else None,
    }  # fmt: skip


def sample_study(cells: list[Cell] | None = None) -> dict[str, Any]:
    cells = sample_cells() if cells is None else cells
    return {
        "format": 1, "command": f"headwater study --out {HOSTILE[0]}", "created": "2025-01-02T03:04:05Z", "seconds": 1234.0,
        "versions": {"headwater": "0.1", "torch": HOSTILE[2]}, "size": {"share": 1.0}, "models": ["tiny"],
        "worlds": [sample_world(task, seed) for task in TASKS for seed in SEEDS], "cells": [cell.to_json() for cell in cells],
        "claims": [claim.to_json() for claim in claims(cells)], "answers": [answer.to_json() for answer in answers(cells)],
    }  # fmt: skip


def write_sample_study(folder: Path, study: dict[str, Any] | None = None) -> Path:
    """study.json and the heat maps that it names."""
    study = sample_study() if study is None else study
    for world in study["worlds"]:
        if world["heat"]:
            write_heat(folder / world["heat"])
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    return folder


def write_heat(path: Path, *, hub: int = 17) -> None:
    """The class a block, for one method; a row that is high for every query, for the other."""
    rng = np.random.default_rng(0)
    train_N, query_Q = np.repeat(np.arange(3), N_ROWS // 3), np.repeat(np.arange(3), N_QUERIES // 3)
    block_QN = 2.0 * (query_Q[:, None] == train_N) + rng.standard_normal((N_QUERIES, N_ROWS))
    stripe_QN = rng.standard_normal((N_QUERIES, N_ROWS)) + 9.0 * (np.arange(N_ROWS) == hub)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"repsim": block_QN.astype(np.float32), "grad_dot": stripe_QN.astype(np.float32)}
    np.savez(path, train_class=train_N, query_class=query_Q, classes=np.array(CLASSES), **arrays)
