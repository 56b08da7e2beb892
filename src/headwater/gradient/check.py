"""A few rows by capture and by autograd, before any long work: a parameter whose captured gradient is wrong leaves the scope, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.gradient.rows import row_engine
from headwater.gradient.scope import Scope, make_layout, matrix_shape
from headwater.gradient.sketch import SketchSpec, sides
from headwater.model.session import Session
from headwater.types import Batch, Layout, Measure

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.3}

NOISE = 1e-4  # share of a row's gradient below which a block is rounding: the bias of attention keys has no gradient but that


@dataclass(frozen=True)
class CaptureCheck:
    """Relative error of every block, over the rows that were tried: `||captured - autograd|| / ||autograd||`."""

    errors: dict[str, float]
    tolerance: float

    @property
    def largest(self) -> float:
        """The worst of the blocks that stayed in scope."""
        return max((error for error in self.errors.values() if error <= self.tolerance), default=0.0)

    @property
    def wrong(self) -> list[str]:
        return [name for name, error in self.errors.items() if not error <= self.tolerance]


def checked_layout(
    session: Session, scope: Scope, spec: SketchSpec, rows: Batch, singles: Sequence[Batch], measure: Measure
) -> tuple[Layout, Scope, CaptureCheck]:
    """The layout of what can be captured exactly. `singles` are the rows of `rows`, one batch each: the reference sees them alone."""
    layout = make_layout(session.model, scope, spec)
    check = check_capture(session, layout, rows, singles, measure)
    if not check.wrong:
        return layout, scope, check
    scope = scope.without(check.wrong, "the captured gradient differs from autograd's")
    return make_layout(session.model, scope, spec), scope, check


def check_capture(session: Session, layout: Layout, rows: Batch, singles: Sequence[Batch], measure: Measure) -> CaptureCheck:
    """Cost: a captured pass and one plain training pass over the rows, one at a time."""
    with row_engine(session, layout) as engine:
        captured_BD = engine.rows(rows, measure).gradient_BD
    reference_BD = torch.stack([autograd_row(session, layout, single, measure) for single in singles])
    captured, reference = layout.split(captured_BD.double()), layout.split(reference_BD.double())
    floor = NOISE * float(reference_BD.norm())
    errors = {name: _relative_error(captured[name], reference[name], floor) for name in captured}
    return CaptureCheck(errors, TOLERANCE[session.dtype])


def autograd_row(session: Session, layout: Layout, single: Batch, measure: Measure) -> Tensor:
    """[D] one example's gradient by plain autograd, then sketched: the twin of the captured row."""
    wanted = {block.name: block for block in layout.blocks}
    parameters = {name: p for name, p in session.model.named_parameters() if name in wanted}
    was_training = session.model.training
    session.model.eval()
    with torch.enable_grad():
        outputs = session.run(single)
        value = measure.fn(outputs, outputs.batch).sum()
        if session.head is not None and _is_wanted(session, parameters):
            value = _through_plain_head(session, single, measure)
        grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    session.model.train(was_training)
    return layout.join({name: _sketched(layout, name, p, g) for (name, p), g in zip(parameters.items(), grads, strict=True)})


def _is_wanted(session: Session, parameters: dict[str, torch.nn.Parameter]) -> bool:
    assert session.head is not None
    return any(p is session.head.linear.weight for p in parameters.values())


def _through_plain_head(session: Session, single: Batch, measure: Measure) -> Tensor:
    """The chunked head gives no weight gradient to autograd: take the model's own logits."""
    head, session.head = session.head, None
    try:
        outputs = session.run(single)
        return measure.fn(outputs, outputs.batch).sum()
    finally:
        session.head = head


def _sketched(layout: Layout, name: str, parameter: torch.nn.Parameter, gradient: Tensor | None) -> Tensor:
    block = next(block for block in layout.blocks if block.name == name)
    value = torch.zeros_like(parameter) if gradient is None else gradient
    value = value.reshape(matrix_shape(parameter)).double()
    for i, side in enumerate(sides(block, layout.sketch_seed, dtype=torch.float64, device=value.device)):
        value = side.project(value.movedim(i, -1)).movedim(-1, i)
    return value


def _relative_error(captured: Tensor, reference: Tensor, floor: float) -> float:
    scale = max(float(reference.norm()), floor)
    error = float((captured - reference).norm())
    return error / scale if scale > 0 else (0.0 if error == 0.0 else float("inf"))
