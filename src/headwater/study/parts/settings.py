"""What several parts share: a method with its options as it is tried, the bank of halves, and figures read and drawn.

D designs (halves) · S seeds · Q queries · N training rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headwater.audit.check import Series
from headwater.evaluate.agreement import Table
from headwater.evaluate.figure import Figure
from headwater.evaluate.lds import matched, tables
from headwater.study.world import World
from headwater.truth.design import subsets
from headwater.types import HeadwaterError, Member, Scores, Truth

CLASS_ALONE = "same class"
"""The method that knows nothing but the class: `World.by_class`."""


@dataclass(frozen=True)
class Setting:
    """`variant` is what a cell says of the options. `first`: so many queries alone are scored, where each of them needs the model."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    first: int | None = None

    @property
    def variant(self) -> str:
        return joined(*(f"{name}={value}" for name, value in self.options.items() if name not in UNSAID))

    def __str__(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method


UNSAID = ("mode", "max_steps")  # options that decide the cost, or that a method always has here


def setting(method: str, **options: Any) -> Setting:
    return Setting(method, options)


def damped(method: str, factor: float, **options: Any) -> Setting:
    """With a damping of so many times the mean eigenvalue of a block."""
    return Setting(method, {"damping": f"{factor:g} * mean_eigenvalue", **options})


def fisher(factor: float) -> Setting:
    return damped("fisher", factor)


LISSA = setting("lissa", max_steps=100)
EKFAC = (damped("ekfac", 0.1, mode="model"), damped("ekfac", 100, mode="model"))
EKFAC_CG = replace(damped("ekfac_cg", 100, mode="model", max_steps=10), first=10)
WORDS = setting("lexical", text="both")


def joined(*variants: str) -> str:
    """The variant of a cell from its parts, without the empty ones."""
    return "; ".join(variant for variant in variants if variant)


LARGE = 5_000_000  # parameters of a model: on a processor a Gauss-Newton product of it takes seconds for each query and step


def scores_or_why_not(world: World, tried: Setting, *, at: Member | None = None) -> Scores | str:
    """The scores, or the reason why this world has none by this method: a feature or a member that is not there, or the cost."""
    if tried.method == EKFAC_CG.method and world.session.device.type == "cpu":
        n_parameters = sum(parameter.numel() for parameter in world.session.model.parameters())
        if n_parameters > LARGE:
            return f"a Gauss-Newton product for each query and step of a model of {n_parameters:,} parameters: only on an accelerator"
    try:
        return world.scores(tried.method, at=at, first=tried.first, **tried.options)
    except HeadwaterError as error:
        return str(error)


def halves(world: World) -> Truth:
    """The model trained again on random halves of the rows, `Size.halves` times `Size.retrainings` seeds: one bank for all parts."""
    designs = subsets(len(world.rows), world.size.halves, seed=world.seed)
    return world.retrained("halves", designs, seeds=training_seeds(world, world.size.retrainings))


def training_seeds(world: World, n: int) -> range:
    """Other ones for each seed of the study."""
    return range(1000 * world.seed, 1000 * world.seed + n)


def k_removed(world: World) -> int:
    """The paper's c, but at most a tenth of the rows: a removal that takes more is of a class, not of the first rows."""
    return max(1, min(world.k, len(world.rows) // 10))


def lds_table(scores: Scores, truth: Truth) -> Table:
    """Spearman's correlation over the designs, for each query of the world, with its pseudo-values (Park et al. 2023)."""
    scores, truth = matched(scores, truth)
    return tables(scores, truth, np.arange(len(truth.kept_DN)))["spearman"]


# ------------------------------------------------------------------------------------------------- figures, read and drawn


def beyond(figure: Figure, level: float) -> bool | None:
    """Whether the whole interval lies above the level (True) or below it (False)."""
    if figure.interval is None or not all(map(math.isfinite, figure.interval)):
        return None
    low, high = figure.interval
    return True if low > level else False if high < level else None


def bars(name: str, names: Sequence[str], figures: Sequence[Figure]) -> Series:
    return Series(name, list(names), *_drawn(figures))


def drawn_line(name: str, points: Sequence[tuple[float, Figure]]) -> Series:
    return Series(name, [x for x, _ in points], *_drawn([figure for _, figure in points]))


def _drawn(figures: Sequence[Figure]) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Values, lower ends, upper ends."""
    low, high = ([None if figure.interval is None else figure.interval[side] for figure in figures] for side in (0, 1))
    return [figure.value if math.isfinite(figure.value) else None for figure in figures], low, high
