"""The store on disk: shards, commits, resume, append, verify; and the same features in memory for queries.

The verb and this package share a name: `headwater.index(model, data, out)` is `headwater.api.index`.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package that can be called: importing any module in it makes `headwater.index` the package, which must still be the verb."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from headwater.api import index

        return index(*args, **options)


sys.modules[__name__].__class__ = _Verb
