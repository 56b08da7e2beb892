"""What could be wrong with an answer, measured. One file per check, found here by name.

The verb and this package share a name: `headwater.audit(run)` is `headwater.auditing.audit`.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package that can be called: importing any module in it makes `headwater.audit` the package, which must still be the verb."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from headwater.auditing import audit

        return audit(*args, **options)


sys.modules[__name__].__class__ = _Verb
