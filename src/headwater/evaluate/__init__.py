"""Arithmetic on two tables: scores of any tool against labels, a bank of retrainings, or other scores. Imports `headwater.types` alone.

The verb and this package share a name: `headwater.evaluate(scores, ...)` is `headwater.api.evaluate`.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package that can be called: importing any module in it makes `headwater.evaluate` the package, which must still be the verb."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from headwater.api import evaluate

        return evaluate(*args, **options)


sys.modules[__name__].__class__ = _Verb
