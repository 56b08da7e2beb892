"""The paper as a program: its tasks, tables and causes, and the controls it lacked, on whatever model one gives.

A `Task` is rows and queries with classes; a `World` is a task with a model that was trained on it; a `Part` measures something in a world
and leaves `Cell`s. Adding a task, a part or a model is adding one file and its line in a registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwater.study.run import StudyResult, study

__all__ = ["StudyResult", "study"]


def __getattr__(name: str) -> Any:
    """`study` loads what it needs when it is first used: a task or a cell costs no more than itself."""
    if name not in __all__:
        raise AttributeError(f"module 'headwater.study' has no attribute {name!r}")
    from headwater.study import run

    return getattr(run, name)
