"""The parts of the study: each measures something in a world and leaves cells. One file a part, by name in `registry`."""

from headwater.study.parts.part import Outcome, Part
from headwater.study.parts.registry import get, names, table

__all__ = ["Outcome", "Part", "get", "names", "table"]
