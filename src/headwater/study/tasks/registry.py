"""The tasks by name, in the order of the study's tables."""

from __future__ import annotations

import difflib

from headwater.study.tasks import backdoor, emotion, grammars, harmful, math, planted
from headwater.study.tasks.task import Maker
from headwater.types import UsageError

ALL: tuple[Maker, ...] = (
    *(harmful.SMALL, harmful.MIDDLE, harmful.LARGE),
    *(emotion.Emotion(), grammars.Grammars(), math.Math()),
    *(backdoor.ONE, backdoor.THREE, backdoor.FIVE),
    *(planted.PlantedEffect(), planted.PlantedWords()),
)
MAKERS: dict[str, Maker] = {maker.name: maker for maker in ALL}


def names() -> list[str]:
    return list(MAKERS)


def get(name: str) -> Maker:
    """The maker of that name. Raises UsageError, with what is close to it, for a name that there is not."""
    if name in MAKERS:
        return MAKERS[name]
    close = difflib.get_close_matches(name, MAKERS, n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(MAKERS)}"
    raise UsageError(f"there is no task {name!r}: {meant}")


def table() -> list[dict[str, str]]:
    """One line a task: name, family, summary."""
    return [{"name": maker.name, "family": maker.family, "summary": maker.summary} for maker in MAKERS.values()]
