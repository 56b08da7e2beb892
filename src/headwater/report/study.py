"""The page of a study: the answers, the claims, every task with its tables and figures, the provenance. It reads study.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from headwater.report.audited import checks
from headwater.report.heat import heat_figures, read_heat
from headwater.report.icons import status
from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import number
from headwater.report.page import asset, content_security_policy
from headwater.report.page import write_page as write_file
from headwater.report.parts import Facts, facts, prose, section
from headwater.report.study_figures import (
    behaviour_plots,
    choices_figure,
    class_and_cause,
    epoch_plots,
    explained_plots,
    plot_figures,
)
from headwater.report.study_schema import (
    AnswerRecord,
    Chapter,
    ClaimRecord,
    Place,
    Pooled,
    StudyRecord,
    VoteRecord,
    WorldRecord,
    chapters,
    options,
    parse_study,
    runs_of,
)
from headwater.report.study_tables import METRICS, cell_table, methods_table
from headwater.types import DataError, Finding, FindingStatus

NAME = "report.html"
MARKS: Mapping[str, FindingStatus] = {
    "reproduced": "ok",
    "not reproduced": "fail",
    "undetermined": "warn",
    "cannot be tested": "unknown",
}
LISTED_CELLS = 60
NAMED = 3  # methods of an answer; more are counted
SHOWN = (*METRICS, "seconds")
"""Metrics of the table of methods; others of that part stand in a table of their own."""


def write_page(folder: Path) -> Path:
    """Write DIR/report.html from DIR/study.json and the heat maps that it names, and return its path.

    A file of the same name is replaced only when the new one is whole. Raises DataError where study.json, or a heat map, cannot be read.
    """
    path = folder / "study.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): run the study first, `headwater study --out {folder}`.") from None
    return write_file(folder / NAME, render(found, folder=folder, where=str(path)))


def render(study: Mapping[str, Any] | StudyRecord, *, folder: Path | None = None, where: str = "study") -> str:
    """The page as a string. Heat maps are looked for in `folder`, and left out without it. Raises DataError as `write_page` does."""
    checked = study if isinstance(study, StudyRecord) else parse_study(study, where=where)
    told = chapters(checked)
    css, js = asset("page.css") + asset("study.css"), asset("theme.js") + asset("study.js")
    return Template(asset("study.html")).substitute(
        csp=content_security_policy(css=css, js=js),
        title="Headwater: study",
        css=css,
        js=js,
        facts=facts(header(checked)),
        answers=join(answers_section(checked, [chapter.place for chapter in told])),
        claims=join(claims_section(checked.claims)),
        tasks=tasks_section(checked, told, folder),
        provenance=provenance_section(checked),
    )


def header(study: StudyRecord) -> Facts:
    seeds = [world.seed for world in study.worlds] or [cell.seed for cell in study.cells]
    empty = sum(cell.value is None for cell in study.cells)
    return [
        ("Tasks", f"{len({world.task for world in study.worlds} or {cell.task for cell in study.cells}):,}"),
        ("Models", foreign(", ".join(dict.fromkeys(place.model for place in study.places)))),
        ("Seeds", runs_of(seeds)),
        ("Cells", f"{len(study.cells):,}" + (f", of which {empty:,} are empty" if empty else "")),
        ("Made", study.created.replace("T", " ").replace("Z", " UTC").replace("+00:00", " UTC")),
        ("Time", duration(study.seconds)),
    ]


def duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{number(seconds, digits=2)} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


# --------------------------------------------------------------------------------------------------------- answers


def answers_section(study: StudyRecord, places: Sequence[Place]) -> Markup | None:
    if not study.answers:
        return section("answers", "Which method, and for what?", note="Nothing was answered: there is neither a table nor a ground truth.")
    head = el("tr", *(el("th", name, scope="col") for name in ("Task", "Use", "It can be trusted for", "Nothing here can be trusted for")))
    rows = [_answer(answer, places) for answer in study.answers]
    table = el("table", el("thead", head), el("tbody", *rows), class_="answers stack")
    note = (
        "For the class: which rows are of the query's kind. For the cause: which rows, had they not been trained on, would change the "
        "output. They are different questions, and a method can be right about one and wrong about the other."
    )
    return section("answers", "Which method, and for what?", table, note=note)


def _answer(answer: AnswerRecord, places: Sequence[Place]) -> Markup:
    place = Place(answer.task, answer.model)
    name = join(foreign(answer.task), el("span", foreign(answer.model), class_="model"))
    linked = el("a", foreign(answer.task), href=f"#task-{places.index(place)}") if place in places else None
    return el(
        "tr",
        el("th", join(linked, el("span", foreign(answer.model), class_="model")) if linked else name, scope="row"),
        el("td", el("dl", *_use("for the class", answer.for_class), *_use("for the cause", answer.for_cause)), data_label="Use"),
        el("td", _sentences(answer.trust), data_label="It can be trusted for"),
        el("td", _sentences(answer.beware), data_label="Nothing here can be trusted for"),
    )


def _use(what: str, names: Sequence[str]) -> tuple[Markup, Markup]:
    if not names:
        return el("dt", what), el("dd", "none", class_="none")
    rest = len(names) - NAMED
    more = el("span", f" and {rest} more, not told apart" if rest > 0 else " (not told apart)", class_="quiet") if len(names) > 1 else None
    return el("dt", what), el("dd", join(*_listed(names[:NAMED])), more)


def _listed(names: Sequence[str]) -> Iterable[object]:
    for k, name in enumerate(names):
        yield from (", ", foreign(name)) if k else (foreign(name),)


def _sentences(told: Sequence[str]) -> Markup:
    return el("ul", *(el("li", prose(sentence)) for sentence in told)) if told else el("p", "nothing", class_="quiet")


# ---------------------------------------------------------------------------------------------------------- claims


def claims_section(claims: Sequence[ClaimRecord]) -> Markup | None:
    if not claims:
        return None
    papers = [claim for claim in claims if claim.origin != "planted"]
    counts = [f"{n} {word}" for word in MARKS if (n := sum(claim.verdict == word for claim in papers))]
    note = f"What Li et al. 2024 say, held against the cells of this study: {', '.join(counts)}."
    return section("claims", "The paper's claims", el("div", *map(_claim, claims), class_="claim-list"), note=note)


def _claim(claim: ClaimRecord) -> Markup:
    mark = MARKS[claim.verdict]
    badge = {"implied": "implied, not stated", "planted": "planted check, not the paper's"}.get(claim.origin)
    return el(
        "div",
        el("div", status(mark, word=claim.verdict)),
        el(
            "div",
            el("h3", foreign(claim.name), " ", badge and el("span", badge, class_="badge")),
            el("p", prose(claim.says), class_="says"),
            el("p", prose(claim.because)),
            _votes(claim.votes),
            _claim_cells(claim.cells),
        ),
        class_=f"claim finding-{mark}",
    )


def _votes(votes: Sequence[VoteRecord]) -> Markup | None:
    if not votes:
        return None
    title = f"{len(votes)} setting{'s' if len(votes) > 1 else ''}"
    return el("details", el("summary", title), el("ul", *map(_vote, votes), class_="votes"))


def _vote(vote: VoteRecord) -> Markup:
    marks: Mapping[bool | None, tuple[FindingStatus, str]] = {True: ("ok", "holds"), False: ("fail", "fails"), None: ("warn", "open")}
    mark, word = marks[vote.holds]
    return el("li", status(mark, word=word), el("span", el("strong", foreign(vote.where)), ": ", prose(vote.told)))


def _claim_cells(cells: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not cells:
        return None
    lines = [el("li", el("code", foreign(_reference(cell)))) for cell in cells[:LISTED_CELLS]]
    left = el("p", f"{len(cells) - LISTED_CELLS:,} more are in study.json.", class_="quiet") if len(cells) > LISTED_CELLS else None
    return el("details", el("summary", f"{len(cells):,} cell{'s' if len(cells) > 1 else ''}"), el("ul", *lines), left)


def _reference(cell: Mapping[str, Any]) -> str:
    names = ("task", "model", "seed", "part", "method", "variant", "metric")
    told = " / ".join(f"seed {cell[name]}" if name == "seed" else str(cell[name]) for name in names if cell.get(name) not in (None, ""))
    value = cell.get("value")
    return f"{told} = {number(value) if isinstance(value, (int, float)) else 'empty'}"


# ----------------------------------------------------------------------------------------------------------- tasks


def tasks_section(study: StudyRecord, told: Sequence[Chapter], folder: Path | None) -> Markup:
    several, models = len(told) > 1, len({chapter.place.model for chapter in told})
    shown = [_chapter(chapter, study.worlds_of(chapter.place), f"task-{k}", folder) for k, chapter in enumerate(told)]
    links = [
        el(
            "a",
            foreign(chapter.place.task),
            el("span", foreign(chapter.place.model), class_="model") if models > 1 else None,
            href=f"#task-{k}",
        )
        for k, chapter in enumerate(told)
    ]
    every = el("a", "All tasks", href="#every-task", data_all=True, data_needs_script=True, hidden=True)
    nav = el("nav", *links, every, class_="task-nav", aria_label="Tasks") if several else None
    body = el("div", el("div", *shown, id="every-task"))
    note = (
        "A number is the mean over seeds. Below it and as a bar its 95 % interval, which knows what varies within a run and between "
        "seeds; a dot is one seed."
    )
    return section("tasks", "Task by task", el("div", nav, body, class_="worlds") if several else body, note=note)


def _link(number_of: int, place: Place, *, with_model: bool) -> Markup:
    model = el("span", foreign(place.model), class_="model") if with_model else None
    return el("a", foreign(place.task), model, href=f"#task-{number_of}")


def _chapter(chapter: Chapter, worlds: Sequence[WorldRecord], id: str, folder: Path | None) -> Markup:
    place = chapter.place
    blocks = [
        block("Methods", _methods(chapter, id)),
        block("Class and cause", class_and_cause(chapter, id=f"{id}-cause"), _truth(chapter, worlds, id)),
        block("Scores, query by training row", _heat(worlds, id, folder)),
        block("Along the epochs", plot_figures(epoch_plots(chapter), id=f"{id}-epochs"), _rest(chapter, "epochs", worlds, id)),
        block("What each choice explains", *_ablation(chapter, id), _drawn("ablation", worlds, id)),
        block("The solver", table_of(chapter, "solver", id), _drawn("solver", worlds, id)),
        block("Same words, or the same behaviour", table_of(chapter, "anti", id), _drawn("anti", worlds, id)),
        block("From the question to the estimate: the gaps", table_of(chapter, "gaps", id), _drawn("gaps", worlds, id)),
        block(
            "Behaviour and distance", plot_figures(behaviour_plots(chapter), id=f"{id}-behaviour"), _rest(chapter, "behaviour", worlds, id)
        ),
        *(
            block(part[:1].upper() + part[1:], table_of(chapter, part, id), _drawn(part, worlds, id))
            for part in _other_parts(chapter, worlds)
        ),
        block("What is doubtful", checks(found, {}) if (found := findings_of(worlds)) else None),
    ]
    heading = el("h2", foreign(place.task), " ", el("span", foreign(place.model), class_="model"), id=f"{id}-title")
    classes = worlds[0].classes if worlds else []
    named = el("p", "Classes: ", foreign(", ".join(classes)), ".", class_="quiet") if classes else None
    return el("article", heading, facts(_about(worlds)), named, *blocks, id=id, class_="chapter", aria_labelledby=f"{id}-title")


KNOWN = ("lint", "tables", "truth", "ablation", "solver", "epochs", "anti", "gaps", "behaviour")


def _other_parts(chapter: Chapter, worlds: Sequence[WorldRecord]) -> list[str]:
    named = [*(one.part for one in chapter.pooled), *(plot.part for world in worlds for plot in world.plots if plot.part)]
    return [part for part in dict.fromkeys(named) if part not in KNOWN]


def _about(worlds: Sequence[WorldRecord]) -> Facts:
    if not worlds:
        return []
    first, n = worlds[0], len(worlds[0].classes)
    return [
        ("Family", foreign(first.family)),
        ("Rows", f"{first.n_rows:,}" if first.n_rows is not None else None),
        ("Queries", f"{first.n_queries:,}" if first.n_queries is not None else None),
        ("c, the first rows counted", first.k),
        ("Classes", n or None),
        ("Seeds", runs_of([world.seed for world in worlds])),
        ("Data", foreign(first.source)),
    ]


def block(title: str, *children: Markup | None) -> Markup | None:
    """None where nothing of it is there."""
    shown = [child for child in children if child]
    return el("div", el("h3", foreign(title)), *shown, class_="block") if shown else None


def _methods(chapter: Chapter, id: str) -> Markup | None:
    shown = replace(chapter, pooled=[one for one in chapter.pooled if one.part != "tables" or one.metric in SHOWN])
    rest = [one for one in chapter.part("tables") if one.metric not in SHOWN]
    more = cell_table(rest, id=f"{id}-tables-more", caption="What else was measured of the methods")
    return join(methods_table(shown, id=f"{id}-tables"), folded("What else was measured of the methods", more))


def _truth(chapter: Chapter, worlds: Sequence[WorldRecord], id: str) -> Markup | None:
    return join(folded("Training again, in numbers", table_of(chapter, "truth", id)), _drawn("truth", worlds, id)) or None


def _ablation(chapter: Chapter, id: str) -> list[Markup | None]:
    cells = chapter.part("ablation")
    explained = [one for one in cells if one.method == "explained" and not one.metric.startswith("auroc")]
    return [
        plot_figures(explained_plots(chapter), id=f"{id}-explained"),
        *(choices_figure(chapter, metric, id=f"{id}-choices-{metric}") for metric in ("accuracy", "cover")),
        folded("Each choice, in numbers", cell_table(by_variant(explained), id=f"{id}-explained", caption="Each choice", first="Choice")),
        el("p", "Every point of the grid, with its interval, is in cells.parquet.", class_="quiet") if cells else None,
    ]


def by_variant(pooled: Sequence[Pooled]) -> list[Pooled]:
    """With the variant in the place of the method, where the method is the same for all."""
    return [replace(one, method=one.variant or one.method, variant="") for one in pooled]


def table_of(chapter: Chapter, part: str, id: str) -> Markup | None:
    return cell_table(chapter.part(part), id=f"{id}-{part}", caption=f"All numbers of part {part}")


def _rest(chapter: Chapter, part: str, worlds: Sequence[WorldRecord], id: str) -> Markup | None:
    """What the curves do not show, as a table."""
    rest = [one for one in chapter.part(part) if "epoch" not in options(one.variant)]
    table = cell_table(rest, id=f"{id}-{part}-rest", caption=f"Over the whole of part {part}")
    return join(folded("Over all epochs, in numbers", table), _drawn(part, worlds, id)) or None


def _drawn(part: str, worlds: Sequence[WorldRecord], id: str) -> Markup | None:
    """The part's own plots, of the first seed that has any: all seeds' are in study.json, and would make the page tens of megabytes."""
    if part in ("epochs", "behaviour", "ablation", "truth"):  # drawn from the cells, all seeds together
        return None
    plots = next((plots for world in worlds if (plots := [plot for plot in world.plots if plot.part == part])), None)
    if plots is None:
        return None
    seeds = {world.seed for world in worlds}
    note = el("p", f"Drawn of seed {min(seeds)}; those of the others are in study.json.", class_="quiet") if len(seeds) > 1 else None
    return join(plot_figures(plots, id=f"{id}-{part}"), note)


def folded(title: str, inside: Markup | None) -> Markup | None:
    return el("details", el("summary", title), inside) if inside else None


def _heat(worlds: Sequence[WorldRecord], id: str, folder: Path | None) -> Markup | None:
    """Of the first seed that has them: pictures are large."""
    world = next((world for world in worlds if world.heat), None)
    if world is None or world.heat is None or folder is None:
        return None
    note = (
        f"Seed {world.seed}. A line is a query, a column a training row, both sorted by class; each query's scores less their mean, over "
        "their standard deviation: blue above, orange below. The class found is a block, a row that comes first whatever is asked a line "
        "from top to bottom."
    )
    figures = heat_figures(read_heat(inside(folder, world.heat)), id=f"{id}-heat")
    return join(el("p", note, class_="quiet"), el("div", *figures, class_="plots"))


def inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises DataError for a name that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"study.json names the heat maps {name!r}, which is not inside {folder}: it was edited, or is of another program.")
    return path


def findings_of(worlds: Sequence[WorldRecord]) -> list[Finding]:
    """Each once: what is said of several seeds in the same words is said once; what differs names its seed."""
    said: dict[tuple[str, str, str], list[int]] = {}
    first: dict[tuple[str, str, str], Finding] = {}
    for world in worlds:
        for finding in world.findings:
            key = (finding.name, finding.status, finding.because)
            said.setdefault(key, []).append(world.seed)
            first.setdefault(key, finding)
    every = len({world.seed for world in worlds})
    return [one if len(said[key]) == every else replace(one, because=f"{runs_of(said[key]).capitalize()}: {one.because}")
            for key, one in first.items()]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ provenance


def provenance_section(study: StudyRecord) -> Markup:
    pairs: Facts = [*((name, foreign(str(value))) for name, value in study.versions.items())]
    command = el("pre", el("code", foreign(study.command)), class_="command") if study.command else None
    return section(
        "provenance",
        "Where the numbers come from",
        command,
        facts(pairs) if pairs else None,
        _worlds_table(study.worlds),
        _raw("Size", study.size),
        _raw("Models", study.models),
        note="The command that made this study; every cell is in study.json.",
    )


def _worlds_table(worlds: Sequence[WorldRecord]) -> Markup | None:
    if not worlds:
        return None
    stages = list(dict.fromkeys(name for world in worlds for name in (*world.seconds, *world.parts)))
    head = el("tr", el("th", "Task", scope="col"), el("th", "Model", scope="col"),
              *(el("th", name, scope="col", class_="number") for name in ("Seed", "Rows", "Queries")),
              *(el("th", foreign(f"{name}, s"), scope="col", class_="number") for name in stages))  # fmt: skip
    rows = [
        el("tr", el("th", foreign(world.task), scope="row"), el("td", foreign(world.model)),
           *(el("td", str(n), class_="number") for n in (world.seed, *map(number, (world.n_rows, world.n_queries)))),
           *(el("td", number({**world.seconds, **world.parts}.get(name)), class_="number") for name in stages))
        for world in worlds
    ]  # fmt: skip
    table = el("table", el("thead", head), el("tbody", *rows), class_="plain")
    return folded(
        "Every task and seed, with its seconds", el("div", table, class_="scroll", tabindex="0", role="region", aria_label="Worlds")
    )


def _raw(name: str, value: Any) -> Markup | None:
    return folded(name, el("pre", foreign(json.dumps(value, indent=2, ensure_ascii=False, default=str)))) if value else None
