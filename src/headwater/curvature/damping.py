"""Damping: never a hidden constant. A number in the curvature's own unit, or a rule that names what it is relative to.

Letters: K blocks of a layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.types import UsageError

RULE = "0.1 * mean_eigenvalue"  # Grosse et al. 2023, section 2: per block
_RELATIVE = re.compile(r"\s*(?:(?P<a>[^*\s]+)\s*\*\s*)?mean_eigenvalue(?:\s*\*\s*(?P<b>[^*\s]+))?\s*")


@dataclass(frozen=True)
class Damping:
    """`factor`, times the mean eigenvalue of each block of C where `relative`."""

    factor: float
    relative: bool

    @staticmethod
    def parse(value: float | str) -> Damping:
        """A number above 0, or `"0.1 * mean_eigenvalue"`. Raises UsageError for anything else."""
        try:
            return Damping(_positive(float(value)), relative=False)
        except ValueError:
            pass
        found = _RELATIVE.fullmatch(str(value))
        try:
            if found and (found["a"] is None or found["b"] is None):
                return Damping(_positive(float(found["a"] or found["b"] or 1)), relative=True)
        except ValueError:
            pass
        raise UsageError(
            f"damping is {value!r}, expected a number above 0 (lambda itself, in the unit of the curvature) or a rule such as {RULE!r}"
        )

    def resolve(self, mean_eigenvalue_K: Tensor) -> Tensor:
        """[K] float64 lambda of each block. A block whose curvature is zero takes the smallest of the others: a rule needs a scale."""
        means_K = mean_eigenvalue_K.double()
        if not self.relative:
            return torch.full_like(means_K, self.factor)
        positive = means_K[means_K > 0]
        if not len(positive):
            raise UsageError(
                "the curvature is zero everywhere, so a damping relative to its mean eigenvalue is 0: give damping as a number"
            )
        return self.factor * torch.where(means_K > 0, means_K, positive.min())


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(value)
    return value
