"""What becomes of each row's gradient before it is sketched: Adam's update with it (LESS), or what is left of it over the root of the
optimizer's second moment (TrackStar).

Letters: B rows · O, I the two sides of a block · X one of them · D numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from headwater.gradient.capture import Collector
from headwater.gradient.factors import FactorSink
from headwater.gradient.sites import Sink
from headwater.gradient.sketch import sides
from headwater.model import measures
from headwater.training.optimizer import AdamState
from headwater.types import Block, Factors, Layout, LayoutMismatch, Measure, UsageError

DENSE_NUMBERS = 1 << 26  # of gradients that are whole at the same time: a vocabulary's matrix is as large for a single row


class RowSink(Sink, Protocol):
    """A sink that makes rows of what it was given."""

    layout: Layout

    def start(self, n_rows: int, n_positions: int) -> None: ...

    def rows(self) -> Tensor:
        """[B, D] of the pass just run."""
        ...


class Transform(Protocol):
    """One way to change gradients before the sketch, bound to one model's parameters. `loss` is whose gradients they are."""

    @property
    def loss(self) -> Measure: ...

    def sink(self, layout: Layout, *, dtype: torch.dtype, device: torch.device, per_token: bool = False) -> RowSink:
        """What the sites of that model fill. Raises LayoutMismatch where the layout has blocks that the transform knows nothing of."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the stored rows rest on, for the facts of an index: kind, options, a hash of the numbers."""
        ...


# -------------------------------------------------------------------------------------------------- second moments


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """`G_oi / sqrt(V_oi)`, V the optimizer's bias-corrected second moment in Adafactor's factored form `r_o c_i / sum(r)`.

    r and c are the sums of the moment over each side of the block (Shazeer and Stern 2018, section 3; Chang et al. 2024 use them so), which
    makes the division a scale on each factor: it costs nothing. A vector (bias, norm weight) has `sqrt(v)` itself. Where a sum is 0 no row
    ever had a gradient, and a query's there meets none: the scale is 0.
    """

    state: AdamState

    loss = measures.LOSS

    def sink(self, layout: Layout, *, dtype: torch.dtype, device: torch.device, per_token: bool = False) -> Collector:
        check_blocks(self.state, layout)
        scales = {block.name: [scale.to(device) for scale in self.scales(block)] for block in layout.blocks}
        return Collector(layout, dtype=dtype, device=device, per_token=per_token, scales=scales)

    def scales(self, block: Block) -> tuple[Tensor, ...]:
        """Float64, one vector for each dimension of the block."""
        b2 = self.state.betas[1]
        v = self.state.second[block.name].double().reshape(block.shape) / (1 - b2 ** self.state.steps[block.name])
        if v.dim() == 1:
            return (_inverse_root(v),)
        return _inverse_root(v.sum(1)), _inverse_root(v.sum(0)) * v.sum().sqrt()

    def describe(self) -> dict[str, Any]:
        return {"kind": "second_moment", "state": self.state.fingerprint, "beta_2": self.state.betas[1]}


def _inverse_root(sums_X: Tensor) -> Tensor:
    return torch.where(sums_X > 0, sums_X.rsqrt(), 0.0)


# --------------------------------------------------------------------------------------------------- Adam's update


@dataclass(frozen=True, eq=False)
class AdamUpdate:
    """The step that Adam would take from its state with this row alone as the batch, but for the learning rate:

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  Gamma = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    (Kingma and Ba 2015, algorithm 1; Xia et al. 2024, section 3, call it Gamma). It moves against Gamma, as it does against a gradient.
    Elementwise, so each row's gradient of a block is formed whole: O I numbers a row, for one block and few rows at a time, and B T O I
    multiplications; the factors of a batch are kept until its backward pass is over. g is the gradient of the row's *mean* loss over its
    targets, as in a Trainer's batch of this row: the update is not linear in g, so its size beside the moments matters.
    """

    state: AdamState

    loss = measures.get("mean_loss")

    def sink(self, layout: Layout, *, dtype: torch.dtype, device: torch.device, per_token: bool = False) -> _ElementwiseSink:
        if per_token:
            raise UsageError("an Adam update has no share of a single position: its second moment is of the whole row's gradient")
        check_blocks(self.state, layout)
        return _ElementwiseSink(layout, replace(self, state=self.state.to(device, dtype)).update, dtype=dtype, device=device)

    def update(self, name: str, g: Tensor) -> Tensor:
        """[B, *shape of the parameter's moments as a matrix] of the rows' gradients of one block."""
        (b1, b2), t = self.state.betas, self.state.steps[name] + 1
        first, second = (moments[name].reshape(g.shape[1:]) for moments in (self.state.first, self.state.second))
        m = first * (b1 / (1 - b1**t)) + g * ((1 - b1) / (1 - b1**t))
        v = second * (b2 / (1 - b2**t)) + g.square() * ((1 - b2) / (1 - b2**t))
        return m / (v.sqrt_() + self.state.eps)

    def describe(self) -> dict[str, Any]:
        return {"kind": "adam", "state": self.state.fingerprint, "betas": list(self.state.betas), "eps": self.state.eps}


class _ElementwiseSink(FactorSink):
    """Keeps the factors of a batch; `rows` makes one block's gradients whole at a time, changes them, sketches them, forgets them."""

    def __init__(self, layout: Layout, change: Callable[[str, Tensor], Tensor], *, dtype: torch.dtype, device: torch.device) -> None:
        whole = replace(layout, blocks=tuple(replace(block, stored=block.shape) for block in layout.blocks))
        super().__init__(whole, dtype=dtype)
        self._sketched, self._change = layout, change
        self._maps = {block.name: sides(block, layout.sketch_seed, dtype=dtype, device=device) for block in layout.blocks}
        self._like = torch.empty(0, dtype=dtype, device=device)

    def rows(self) -> Tensor:
        factors = dict(self.take())
        return torch.cat([self._block(block, factors.pop(block.name, None)) for block in self._sketched.blocks], dim=-1)

    def _block(self, block: Block, factors: Factors | None) -> Tensor:
        """[B, size], a few rows at a time where the block is large."""
        some = max(1, DENSE_NUMBERS // torch.Size(block.shape).numel())
        starts = range(0, self.shape_BT[0], some)
        return torch.cat([self._sketch(block, self._dense(block, factors, slice(start, start + some))) for start in starts])

    def _dense(self, block: Block, factors: Factors | None, rows: slice) -> Tensor:
        """A block that was not used has a gradient of zeros, which need not be an update of zeros."""
        if factors is None:
            n_rows = len(range(self.shape_BT[0])[rows])
            return self._like.new_zeros(n_rows, *block.shape)
        return Factors(factors.a_BTI[rows], factors.g_BTO[rows]).dense().reshape(-1, *block.shape)

    def _sketch(self, block: Block, dense: Tensor) -> Tensor:
        changed = self._change(block.name, dense)
        for i, side in enumerate(self._maps[block.name], start=1):
            changed = side.project(changed.movedim(i, -1)).movedim(-1, i)
        return changed.reshape(len(dense), block.size)


def check_blocks(state: AdamState, layout: Layout) -> None:
    """Raise LayoutMismatch unless the optimizer has moments of every block, of its size."""
    shapes = {name: tuple(moment.shape) for name, moment in state.second.items()}
    wrong = [block.name for block in layout.blocks if torch.Size(shapes.get(block.name, (0,))).numel() != torch.Size(block.shape).numel()]
    if wrong:
        raise LayoutMismatch(
            f"the optimizer has no moments of {len(wrong)} of {len(layout.blocks)} parameters in scope, or of another size "
            f"({', '.join(wrong[:3])}). Likely cause: it trained other parameters than these. Take the checkpoint of this model, or leave "
            "them out of scope (--exclude)."
        )
