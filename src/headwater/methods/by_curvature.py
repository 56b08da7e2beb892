"""Influence under the name of its curvature: `fisher` is `Influence(Fisher())`."""

from __future__ import annotations

import inspect
from typing import Any

from headwater import curvature
from headwater.methods.influence import Influence


class InfluenceBy:
    """Called with the curvature's options and `mode`, gives `Influence` with that curvature; the registry treats it as a method's class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__qualname__ = f"{type(self).__name__}({name!r})"
        own = inspect.signature(curvature.find(name)).parameters.values()
        mode = inspect.signature(Influence).parameters["mode"]
        self.__signature__ = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in (*own, mode)])

    def __call__(self, **options: Any) -> Influence:
        mode = {"mode": options.pop("mode")} if "mode" in options else {}
        return Influence(curvature.get(self.name, **options), **mode)
