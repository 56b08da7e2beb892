"""Classes of a sequence classifier as integers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.corpus.report import UnusableRow
from headwater.types import DataError

PLACEHOLDER = re.compile(r"LABEL_\d+")  # what a model config says when nobody named the classes
INTEGER = re.compile(r"\d+")


@dataclass(frozen=True)
class LabelMap:
    """Class names to integers, and the rule that they come from, in words."""

    names: Mapping[str, int]
    rule: str

    @staticmethod
    def fit(values: Iterable[Any], label2id: Mapping[str, int] | None) -> LabelMap:
        """Integers (also written as text, as csv does) stay; names go through `label2id`, or are numbered in sorted order where the
        model does not name its classes. Raises DataError for a name that `label2id` lacks."""
        found = sorted({value for value in values if isinstance(value, str)})
        if label2id and set(found) <= set(label2id):
            return LabelMap(dict(label2id), "the model's label2id")
        if all(INTEGER.fullmatch(name) for name in found):
            return LabelMap({name: int(name) for name in found}, "integers as given")
        if label2id and not all(PLACEHOLDER.fullmatch(name) for name in label2id):
            unknown = [name for name in found if name not in label2id]
            raise DataError(
                f"labels {unknown[:5]} are not among the model's classes {sorted(label2id)[:20]}: the model was probably trained on other "
                "classes; rename the labels, or give the model that knows them"
            )
        return LabelMap({name: number for number, name in enumerate(found)}, "names in sorted order, numbered from 0")

    def to_id(self, value: Any) -> int:
        """The class's integer. Raises UnusableRow for anything that is not a class."""
        if isinstance(value, str) and value in self.names:
            return self.names[value]
        if isinstance(value, int) and value >= 0:
            return int(value)
        raise UnusableRow("undecodable", f"label {value!r} is not a class: expected an integer of at least 0, or a name")
