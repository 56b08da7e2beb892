"""What the removal experiment says, computed from its numbers: one place for the page, the terminal and the findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headwater.report.numerals import number, with_unit
from headwater.report.schema import Experiment, Removal
from headwater.types import Finding

MUCH_MORE = 5.0  # times the random removal's effect: the demo's own bar
NOISE = 0.1  # an effect of random removal below this (in the measure's unit) counts as this, so that a ratio stays finite

Outcome = Literal["caused", "more", "none", "unknown"]


@dataclass(frozen=True)
class Effect:
    """One query's two falls: positive means that the measure went down after the removal."""

    query: Removal
    fall: float | None
    random_fall: float | None

    @property
    def excess(self) -> float | None:
        """How much further the measure fell than after random removal."""
        return None if self.fall is None or self.random_fall is None else self.fall - self.random_fall

    @property
    def outcome(self) -> Outcome:
        if self.fall is None or self.random_fall is None:
            return "unknown"
        by_chance = max(abs(self.random_fall), NOISE)
        if self.fall >= MUCH_MORE * by_chance:
            return "caused"
        return "more" if self.fall >= 2 * by_chance else "none"


def effects(experiment: Experiment) -> list[Effect]:
    return [Effect(q, _fall(q.before, q.after_removal), _fall(q.before, q.after_random_removal)) for q in experiment.queries]


def sentence(effect: Effect, experiment: Experiment) -> str:
    """One query's result in words; every number in it comes from the trace."""
    if effect.fall is None or effect.random_fall is None:
        return "Not measured: a number of this query is missing, so the removal says nothing about it."
    rows, unit = experiment.removed, experiment.unit
    told = f"Removing the {rows} found rows {_moved(effect.fall, unit)}; removing {rows} random rows {_moved(effect.random_fall, unit)}"
    return f"{told}{_times(effect)}. {_MEANING[effect.outcome]}"


def experiment_findings(experiment: Experiment) -> list[Finding]:
    """One finding per query that has a planted cause; per query where no kinds are given."""
    planted = [effect for effect in effects(experiment) if effect.query.kind == "planted"]
    kinds = any(query.kind for query in experiment.queries)
    return [_finding(effect, experiment) for effect in (planted if kinds else effects(experiment))]


def _finding(effect: Effect, experiment: Experiment) -> Finding:
    status = {"caused": "ok", "more": "warn", "none": "fail", "unknown": "unknown"}[effect.outcome]
    return Finding(
        name=f"removal: {effect.query.id}",
        status=status,  # pyright: ignore[reportArgumentType]
        because=sentence(effect, experiment),
        value=effect.excess,
        unit=experiment.unit,
        n=1,
        next_step="One retraining each gives no interval: repeat with other seeds before quoting the number.",
    )


_MEANING: dict[Outcome, str] = {
    "caused": "So these rows carried this output.",
    "more": "That is more than chance takes, but not by much: weak evidence that these rows carried this output.",
    "none": "That is no more than chance takes: no evidence that these rows carried this output.",
    "unknown": "",
}


def _fall(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _moved(fall: float, unit: str | None) -> str:
    return f"{'lowered' if fall >= 0 else 'raised'} the measure by {with_unit(abs(fall), unit)}"


def _times(effect: Effect) -> str:
    """The ratio, only where both falls are falls and the random one is large enough to divide by."""
    if effect.fall is None or effect.random_fall is None or effect.fall <= 0 or effect.random_fall < NOISE:
        return ""
    return f" ({number(effect.fall / effect.random_fall, digits=2)} times as much)"
