"""The tables of docs/study.md, from finished studies.

    headwater study --out runs/study --seeds 3
    headwater study --out runs/study-paper --data ../shared/data/paper --tasks grammars,math --text ../shared/data/wikitext-2/valid.txt ...
    headwater study --out runs/study-encoder --data ../shared/data/paper --tasks emotion --model minilm ...
    python -m benchmarks.study --made runs/study --paper runs/study-paper --encoder runs/study-encoder [--json]

What the tables show of the cells goes into `benchmarks/results/study.json`; the tables go into the page, between the marks
`<!--study:NAME-->` and `<!--/study-->`. A test holds the page against the file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, record
from headwater.study.cells import Cell
from headwater.study.parts.settings import CLASS_ALONE
from headwater.study.reading import Reading, Setting, Way

PAGE = Path(__file__).parents[1] / "docs" / "study.md"
MARK = re.compile(r"(<!--study:(?P<name>[\w-]+)-->\n).*?(<!--/study-->)", re.DOTALL)
STUDIES = ("made", "paper", "encoder")

KEPT: dict[str, tuple[str, ...]] = {
    "tables": ("accuracy", "cover", "auroc", "average_precision", "hub_share", "seconds"),
    "truth": ("lds", "lds less same class", "change when its first k are removed, less random", "change when its class is left out"),
    "epochs": ("spread of accuracy over epochs", "spread of lds over epochs"),
    "gaps": ("gap", "effect", "share of the effect"),
    "behaviour": ("attack success", "parameter distance", "projection", "difference of attack success", "ratio of parameter distances"),
    "anti": ("prefers behaviour to words", "agrees with the tail patch"),
    "solver": ("mean eigenvalue over damping", "largest eigenvalue over damping", "rank over rows", "bound on the error", "error",
               "cosine to gradient within a tensor", "rank correlation to dot", "rank correlation to exact Fisher"),
    "ablation": ("accuracy", "accuracy points", "cover points", "accuracy change (one mended)"),
}  # fmt: skip
CAUSES = ("padding", "prompt", "hubs", "solver", "remaining", "failure")


# -------------------------------------------------------------------------------------------------------- what is kept


def kept(study: Mapping[str, Any]) -> dict[str, Any]:
    """Of a study.json: what it was, and the pooled figures that the tables show."""
    cells = [Cell.from_json(cell) for cell in study["cells"]]
    reading = Reading(cells)
    figures = [
        figure for setting in reading.settings for part, metrics in KEPT.items() for figure in _figures(reading, setting, part, metrics)
    ]
    about = ("task", "family", "n_rows", "n_queries", "k", "epochs", "source")
    worlds = list({world["task"]: {name: world.get(name) for name in about} for world in study["worlds"]}.values())
    return {
        **{name: study[name] for name in ("command", "size", "seconds")},
        "seeds": len({world["seed"] for world in study["worlds"]}),
        "cells": len(cells),
        "empty": sum(cell.value is None for cell in cells),
        "worlds": worlds,
        "claims": [{name: claim[name] for name in ("name", "says", "verdict", "because", "origin")} for claim in study["claims"]],
        "answers": study["answers"],
        "figures": figures,
    }


def _figures(reading: Reading, setting: Setting, part: str, metrics: Sequence[str]) -> Iterator[list[Any]]:
    for metric in metrics:
        for way in reading.ways(setting, part, metric):
            if part == "ablation" and metric == "accuracy" and way.method != "explained":
                continue
            known = reading.known(setting, part, way.method, metric, way.variant)
            if known is not None:
                interval = known.interval or (None, None)
                yield [setting.task, part, way.method, way.variant, metric, *(_short(value) for value in (known.value, *interval))]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Shown:
    """A study as the tables read it: figures by (task, part, method, variant, metric)."""

    about: Mapping[str, Any]

    @property
    def figures(self) -> dict[tuple[str, ...], tuple[float, float | None, float | None]]:
        return {tuple(line[:5]): tuple(line[5:]) for line in self.about["figures"]}

    @property
    def tasks(self) -> list[str]:
        return [world["task"] for world in self.about["worlds"]]

    def ways(self, part: str, metric: str) -> list[Way]:
        return list(dict.fromkeys(Way(line[2], line[3]) for line in self.about["figures"] if line[1] == part and line[4] == metric))

    def text(self, task: str, part: str, way: Way, metric: str, *, interval: bool = True) -> str:
        found = self.figures.get((task, part, way.method, way.variant, metric))
        if found is None:
            return "-"
        value, low, high = found
        return number(value) if low is None or high is None or not interval else f"{number(value)} [{number(low)}, {number(high)}]"


def number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def class_table(shown: Shown) -> str:
    """Accuracy / cover of every method on every task."""

    def both(task: str, way: Way) -> str:
        return " / ".join(shown.text(task, "tables", way, metric, interval=False) for metric in ("accuracy", "cover"))

    lines = [[str(way), *(both(task, way) for task in shown.tasks)] for way in shown.ways("tables", "accuracy")]
    return table(["accuracy / cover", *shown.tasks], lines)


def cause_table(shown: Shown) -> str:
    """LDS of every method on every task, with what noise lets anyone reach and what knowing the class alone is worth."""
    ways = shown.ways("truth", "lds")
    first = [way for name in ("noise ceiling", CLASS_ALONE) for way in ways if way.method == name]
    ordered = [*first, *(way for way in ways if way not in first)]
    return table(["LDS", *shown.tasks], [[str(way), *(shown.text(task, "truth", way, "lds") for task in shown.tasks)] for way in ordered])


def by_task(part: str, columns: Mapping[str, tuple[Way, str]]) -> Callable[[Shown], str]:
    """A line a task; the columns are figures."""

    def made(shown: Shown) -> str:
        lines = [[task, *(shown.text(task, part, way, metric) for way, metric in columns.values())] for task in shown.tasks]
        return table(["task", *columns], [line for line in lines if set(line[1:]) != {"-"}])

    return made


def _named(way: Way) -> str:
    return way.variant if way.method == "explained" else str(way)


def by_method(part: str, metric: str) -> Callable[[Shown], str]:
    def made(shown: Shown) -> str:
        tasks = [task for task in shown.tasks if any(key[0] == task and key[1] == part and key[4] == metric for key in shown.figures)]
        lines = [[_named(way), *(shown.text(task, part, way, metric) for task in tasks)] for way in shown.ways(part, metric)]
        return table(["", *tasks], lines)

    return made


UNTESTED = "cannot be tested"
NOTES = {"implied": " (implied, not stated)", "planted": " (a planted check, not the paper's)"}


def claims_table(shown: Shown) -> str:
    """The claims that this study could test, and the names of the others."""
    claims = shown.about["claims"]
    tested = [claim for claim in claims if claim["verdict"] != UNTESTED]
    others = "; ".join(claim["name"] for claim in claims if claim["verdict"] == UNTESTED)
    lines = [[claim["says"] + NOTES.get(claim["origin"], ""), f"**{claim['verdict']}**", claim["because"]] for claim in tested]
    found = table(["claim", "verdict", "the cells that say so"], lines)
    return f"{found}\nCannot be tested here: {others}.\n" if others else found


def answers_list(shown: Shown) -> str:
    lines = []
    for answer in shown.about["answers"]:
        lines += [
            f"- **{answer['task']}**",
            *(f"    - {line}" for line in answer["trust"]),
            *(f"    - Not: {line}" for line in answer["beware"]),
        ]
    return "\n".join([*lines, ""])


def about(shown: Shown) -> str:
    facts = shown.about
    sizes = ", ".join(f"{world['task']} {world['n_rows']} + {world['n_queries']}" for world in facts["worlds"])
    seeds = f"{facts['seeds']} seed{'' if facts['seeds'] == 1 else 's'}"
    cells = f"{facts['cells']:,} cells, {facts['empty']} of them empty with a reason"
    return f"`{facts['command']}`: {seeds}, {cells}, {facts['seconds'] / 60:.0f} minutes. Rows + queries: {sizes}.\n"


def planted_table(shown: Shown) -> str:
    chosen = [Way(name) for name in ("grad_dot", "grad_cos", "less", "repsim")] + [Way("lexical", "text=prompt")]
    tasks = [task for task in shown.tasks if task.startswith("planted")]
    return table(["task", *(f"{way} accuracy" for way in chosen)], [
        [task, *(shown.text(task, "tables", way, "accuracy") for way in chosen)] for task in tasks
    ])  # fmt: skip


WORDS = {
    f"{name} on the {text}": (Way(name, f"text={text}"), "accuracy") for name in ("tfidf", "lexical") for text in ("prompt", "response")
}
THEOREM = {name: (Way("theorem 1"), name) for name in KEPT["solver"][:5]}
SOLVERS = {name: (Way(name), "cosine to gradient within a tensor") for name in ("datainf", "lissa_released", "lissa", "ekfac", "fisher")}
EXPLAINED = {cause: (Way("explained", f"cause={cause}"), "accuracy points") for cause in CAUSES}
EXPLAINED_COVER = {cause: (Way("explained", f"cause={cause}"), "cover points") for cause in CAUSES}
TABLE_5 = {
    "attack success, breaking less ordinary": (Way("breaking against ordinary"), "difference of attack success"),
    "parameter distance, ratio": (Way("breaking against ordinary"), "ratio of parameter distances"),
}
TABLES: dict[str, Callable[[Shown], str]] = {
    "about": about,
    "answers": answers_list,
    "claims": claims_table,
    "class": class_table,
    "cause": cause_table,
    "removal": by_method("truth", "change when its first k are removed, less random"),
    "planted": planted_table,
    "words": by_task("tables", {**WORDS, "length": (Way("length"), "accuracy")}),
    "explained": by_task("ablation", EXPLAINED),
    "explained-cover": by_task("ablation", EXPLAINED_COVER),
    "mended": by_method("ablation", "accuracy change (one mended)"),
    "theorem": by_task("solver", THEOREM),
    "solvers": by_task("solver", SOLVERS),
    "epochs": by_method("epochs", "spread of accuracy over epochs"),
    "epochs-lds": by_method("epochs", "spread of lds over epochs"),
    "behaviour": by_task("behaviour", TABLE_5),
    "anti": by_method("anti", "prefers behaviour to words"),
    "gaps": by_method("gaps", "gap"),
}


def written(page: str, result: Mapping[str, Any]) -> str:
    """The page with the tables that its marks name: `<!--study:made-claims-->` is the table "claims" of the study "made"."""

    def block(found: re.Match[str]) -> str:
        study, _, name = found["name"].partition("-")
        return f"{found[1]}\n{TABLES[name](Shown(result[study]))}\n{found[3]}" if study in result else found[0]

    return MARK.sub(block, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in STUDIES:
        parser.add_argument(f"--{name}", type=Path, help="the folder of that study; what is recorded of it stays where not given")
    parser.add_argument("--json", action="store_true", help="record the result and print it as the last line")
    arguments = parser.parse_args()
    path = RESULTS / "study.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result = {name: there[name] for name in STUDIES if name in there}
    for name in STUDIES:
        if (folder := getattr(arguments, name)) is not None:
            result[name] = kept(json.loads((folder / "study.json").read_text(encoding="utf-8")))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(f"{PAGE.name}: {', '.join(result)}")
    if arguments.json:
        record("study", result, command=f"python -m benchmarks.study {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
