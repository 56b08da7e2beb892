"""Conjugate gradients on the damped reference operator: exact up to a tolerance, at a product with it for each step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from headwater.curvature.conjugate import conjugate_gradients
from headwater.curvature.damping import RULE
from headwater.curvature.operators import check_counts, check_width, damped_reference, reference_damping, reference_operator, working
from headwater.types import Solve, Source, State


@dataclass(frozen=True)
class CG:
    """`(C + lambda) x = v` by conjugate gradients to `||(C + lambda) x - v|| <= tolerance ||v||`.

    C is the reference operator, joint over the blocks: the Gauss-Newton matrix of a live model, the empirical Fisher of stored rows.
    Damping is per block, relative to the mean eigenvalue of the operator's own block. The status is the worst of the right-hand sides'.
    Cost: one pass to fit (none where damping is a number); about sqrt(largest eigenvalue / lambda) products with the operator for each
    v, each a scan over stored rows or three passes of a model. Over stored rows in float64, so that the tolerance can be met.
    """

    damping: float | str = RULE
    tolerance: float = 1e-6
    max_steps: int = 200

    name = "cg"
    summary = "conjugate gradients on the damped reference operator"
    reference = "Hestenes and Stiefel 1952; Martens 2010, section 4"
    cost = "one scan; as many scans as steps a solve"

    def __post_init__(self) -> None:
        check_counts(self.name, max_steps=self.max_steps)

    def fit(self, source: Source) -> State:
        return {"damping": reference_damping(source, self.damping)}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        operator = damped_reference(state, source)
        found = conjugate_gradients(operator, working(b_KD, source), tolerance=self.tolerance, max_steps=self.max_steps)
        return replace(found, value=found.value.to(b_KD), residual_of=reference_operator(source)[0])
