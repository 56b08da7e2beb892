"""The tasks: rows and queries whose class is known by construction. One file a family, by name in `registry`."""

from headwater.study.tasks.registry import get, names, table
from headwater.study.tasks.task import AntiPair, Family, Maker, Row, Task

__all__ = ["AntiPair", "Family", "Maker", "Row", "Task", "get", "names", "table"]
