"""Which method to use on a task, what it can be trusted for, and what nothing here can be trusted for: in words, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headwater.study.cells import Cell
from headwater.study.claims import HALF, above, ceiling_of
from headwater.study.reading import ORACLE, Known, Reading, Setting, Way, listed

CLASS_METRICS = ("average_precision", "auroc", "accuracy")
"""What the best method for the class is chosen by: the first of these that was measured."""
METRIC_WORDS = {"average_precision": "average precision", "auroc": "AUROC", "accuracy": "accuracy", "lds": "LDS"}

WORDS = ("lexical", "tfidf")
CONTROLS = (*WORDS, "embedding", "length", "loss", "random")
"""What knows nothing of the model, or nothing of the query: never the method to use, always what it is held against."""
NO_METHODS = (ORACLE, "noise ceiling", "ceiling")
NAMED = 4  # ties in a sentence
SHOWN = 3  # methods with their figures in a sentence
HUB = 0.2  # of the queries with the same first row


@dataclass(frozen=True)
class Answer:
    """`for_class` and `for_cause` are the methods to use, the best first, with those that cannot be told from it; () where none is.

    `trust` and `beware` are sentences: what the methods can be trusted for here, and what nothing here can be trusted for.
    """

    task: str
    model: str
    for_class: tuple[str, ...]
    for_cause: tuple[str, ...]
    trust: tuple[str, ...]
    beware: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Best:
    """The way with the largest value, what is not told from it by the interval of the difference, and the metric."""

    way: Way
    known: Known
    ties: tuple[Way, ...]
    metric: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(str, (self.way, *self.ties)))

    def __str__(self) -> str:
        more = [f"{len(self.ties) - NAMED} others"] if len(self.ties) > NAMED else []
        tied = f", not told apart from {listed([*self.ties[:NAMED], *more])}" if self.ties else ""
        return f"{self.way}, {METRIC_WORDS[self.metric]} {self.known}{tied}"


def answers(cells: Sequence[Cell]) -> list[Answer]:
    """One for each task and model that has a table of methods or a ground truth, in the order of the cells."""
    reading = Reading(cells)
    answered = [setting for setting in reading.settings if any(cell.part in ("tables", "truth") and cell.value is not None
                for cell in cells if (cell.task, cell.model) == setting)]  # fmt: skip
    return [answer(reading, setting) for setting in answered]


def answer(reading: Reading, setting: Setting) -> Answer:
    metric = next((name for name in CLASS_METRICS if candidates(reading, setting, "tables", name)), "accuracy")
    by_class, by_cause = best(reading, setting, "tables", metric), best(reading, setting, "truth", "lds")
    found = [*about_class(reading, setting, by_class), *about_cause(reading, setting, by_cause)]
    use_class = by_class.names if by_class and beats_chance(reading, setting, by_class) else ()
    use_cause = by_cause.names if by_cause and above(by_cause.known.figure, 0.0) else ()
    trust, beware = (tuple(told for good, told in found if good is side) for side in (True, False))
    return Answer(setting.task, setting.model, use_class, use_cause, trust, beware)


def candidates(reading: Reading, setting: Setting, part: str, metric: str) -> list[Way]:
    return [way for way in reading.ways(setting, part, metric) if way.method not in (*CONTROLS, *NO_METHODS)]


def best(reading: Reading, setting: Setting, part: str, metric: str) -> Best | None:
    ways = candidates(reading, setting, part, metric)
    known = {way: found for way in ways if (found := reading.known(setting, part, way.method, metric, way.variant))}
    if not known:
        return None
    first = max(known, key=lambda way: known[way].value)
    ordered = sorted((way for way in known if way != first), key=lambda way: -known[way].value)
    return Best(first, known[first], tuple(way for way in ordered if not_worse(reading, setting, part, way, first, metric)), metric)


def not_worse(reading: Reading, setting: Setting, part: str, way: Way, first: Way, metric: str) -> bool:
    """Whether the interval of `first - way` reaches 0. Without an interval nothing is tied."""
    gap = reading.less(setting, part, first, way, metric)
    return gap is not None and gap.interval is not None and gap.interval[0] <= 0


# ------------------------------------------------------------------------------------------------------- the class


def about_class(reading: Reading, setting: Setting, by_class: Best | None) -> list[tuple[bool, str]]:
    """(is it something to trust, the sentence)."""
    if by_class is None:
        return [(False, "Finding rows of the query's class: no method was measured.")]
    if not beats_chance(reading, setting, by_class):
        return [(False, f"Finding rows of the query's class: the best, {by_class}, is not told from a random order.")]
    found = [(True, f"Finding rows of the query's class: {by_class}.")]
    return found + [(False, told) for told in (words_do_it(reading, setting, by_class), first_rows(reading, setting, by_class)) if told]


def beats_chance(reading: Reading, setting: Setting, by_class: Best) -> bool:
    """Against the random order where that was measured; AUROC against one half else. What cannot be compared is not above chance."""
    if reading.known(setting, "tables", "random", by_class.metric) is None:
        return by_class.metric == "auroc" and above(by_class.known.figure, 0.5) is True
    gap = reading.less(setting, "tables", by_class.way, "random", by_class.metric)
    return gap is not None and gap.interval is not None and gap.interval[0] > 0


def words_do_it(reading: Reading, setting: Setting, by_class: Best) -> str | None:
    """Where a count of shared words is as good as the best method, within the interval, the class says nothing of the model."""
    ways = [way for way in reading.ways(setting, "tables", by_class.metric) if way.method in WORDS]
    tied = [way for way in ways if not_worse(reading, setting, "tables", way, by_class.way, by_class.metric)]
    if not tied:
        return None
    known = {way: reading.known(setting, "tables", way.method, by_class.metric, way.variant) for way in tied}
    way = max(tied, key=lambda way: known[way].value)  # type: ignore[union-attr]
    told = f"{way}, {METRIC_WORDS[by_class.metric]} {known[way]}"
    return f"Telling what the model has learned from which words are shared: words alone do it ({told})."


def first_rows(reading: Reading, setting: Setting, by_class: Best) -> str | None:
    hubs = reading.known(setting, "tables", by_class.way.method, "hub_share", by_class.way.variant)
    if hubs is None or hubs.value <= HUB:
        return None
    return f"The first row by {by_class.way}: one and the same row comes first for a share of {hubs} of the queries."


# ------------------------------------------------------------------------------------------------------- the cause


def about_cause(reading: Reading, setting: Setting, by_cause: Best | None) -> list[tuple[bool, str]]:
    if by_cause is None:
        return [(False, "Which rows caused an output: nothing was trained again here, so nothing says.")]
    if above(by_cause.known.figure, 0.0) is not True:
        return [(False, f"Which rows caused an output: the best, {by_cause}, is not told from no relation to training again.")]
    ceiling = ceiling_of(reading, setting)
    reach = "" if ceiling is None else f"; noise lets anyone reach {ceiling}"
    found = [(True, f"The sum of the scores of many rows follows what training on them does: {by_cause}{reach}.")]
    found.append(beyond_the_class(reading, setting))
    if ceiling is not None and by_cause.known.interval is not None and by_cause.known.interval[1] < HALF * ceiling.value:
        found.append((False, f"More than half of what can be known of the cause: the best reaches {by_cause.known} of {ceiling}."))
    words = [way for way in reading.ways(setting, "truth", "lds") if way.method in WORDS]
    tied = [way for way in words if not_worse(reading, setting, "truth", way, by_cause.way, "lds")]
    if tied:
        known = reading.known(setting, "truth", tied[0].method, "lds", tied[0].variant)
        found.append((False, f"A cause beyond shared words: {tied[0]}, LDS {known}, is not told apart from the best."))
    return found


def beyond_the_class(reading: Reading, setting: Setting) -> tuple[bool, str]:
    """Whether any method's LDS is surely above that of knowing the class alone."""
    oracle = reading.known(setting, "truth", ORACLE, "lds")
    if oracle is None:
        return False, "More than the class: what knowing the class alone is worth was not measured."
    gaps = {way: reading.less(setting, "truth", way, ORACLE, "lds") for way in candidates(reading, setting, "truth", "lds")}
    more = [(way, gap) for way, gap in gaps.items() if gap is not None and gap.interval is not None and gap.interval[0] > 0]
    if more:
        more.sort(key=lambda one: -one[1].value)
        rest = [f"{len(more) - SHOWN} others"] if len(more) > SHOWN else []
        told = listed([*(f"{way} (by {gap})" for way, gap in more[:SHOWN]), *rest])
        return True, f"More than the class: LDS above that of knowing the class alone, {oracle}, for {told}."
    return False, f"Which row of the class it was: nothing here says more than the class, whose LDS is {oracle}."
