"""Per-example gradients of every parameter in scope, from one forward and one backward pass.

Weights are frozen while capturing, so autograd never forms a weight gradient; each place where a parameter is used hands over its
two factors (what went in, what came back), each projected as soon as it is there.

Letters: B rows · T positions · X, Y the two sides of a parameter · K, L what is stored of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from headwater.gradient.sites import Sink, attach_sites
from headwater.gradient.sketch import Side, sides
from headwater.types import Factors, Layout


class Collector:
    """Adds up what the sites hand over: for each block [B, *stored], or [B, T, *stored] where positions are kept apart.

    `scales` are what the sides of blocks are multiplied by before the sketch, by name, one vector for each dimension.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        dtype: torch.dtype,
        device: torch.device,
        per_token: bool = False,
        scales: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.layout = layout
        self.per_token = per_token
        self.sides: dict[str, tuple[Side, ...]] = {
            block.name: sides(block, layout.sketch_seed, dtype=dtype, device=device, scales=None if scales is None else scales[block.name])
            for block in layout.blocks
        }
        self.shape_BT = (0, 0)
        self._parts: dict[str, Tensor] = {}
        self._like = torch.empty(0, dtype=dtype, device=device)

    def start(self, n_rows: int, n_positions: int) -> None:
        """Forget what was collected; the next pass is over a batch of this shape."""
        self.shape_BT = (n_rows, n_positions)
        self._parts = {}

    def wants(self, name: str) -> bool:
        return name in self.sides

    def add_factors(self, name: str, factors: Factors) -> None:
        """A use of a matrix, both sides already projected: what the block's first dimension indexes is `g`, the second `a`."""
        self._add(name, factors.per_token() if self.per_token else factors.dense())

    def add_scattered(self, name: str, positions_P: Tensor, left_PK: Tensor, right_PL: Tensor) -> None:
        """The same where only some of the batch's flattened positions were used (an expert's tokens)."""
        n_rows, n_positions = self.shape_BT
        slots = positions_P if self.per_token else positions_P // n_positions
        outer = left_PK.unsqueeze(-1) * right_PL.unsqueeze(-2)
        total = outer.new_zeros(n_rows * n_positions if self.per_token else n_rows, *outer.shape[1:]).index_add_(0, slots, outer)
        self._add(name, total.unflatten(0, (n_rows, n_positions)) if self.per_token else total)

    def add_vector(self, name: str, terms_BTX: Tensor) -> None:
        """A use of a vector (bias, norm weight): `sum_t terms_t`."""
        (side,) = self.sides[name]
        self._add(name, side.project(terms_BTX if self.per_token else terms_BTX.sum(1)))

    def rows(self) -> Tensor:
        """[B, D] the rows of the pass just run, in the layout's order ([B, T, D] per token). A block never used is zero.

        What was collected goes, block by block, into the rows: it is not there a second time.
        """
        n_rows, n_positions = self.shape_BT
        lead = (n_rows, n_positions) if self.per_token else (n_rows,)
        dtype = reduce(torch.promote_types, (part.dtype for part in self._parts.values()), self._like.dtype)
        rows = self._like.new_empty(*lead, self.layout.size, dtype=dtype)
        for block, into in zip(self.layout.blocks, rows.split([block.size for block in self.layout.blocks], -1), strict=True):
            part = self._parts.pop(block.name, None)
            into.zero_() if part is None else into.copy_(self._at_positions(part).reshape(*lead, block.size))
        return rows

    def _at_positions(self, part: Tensor) -> Tensor:
        """A pooled layer (a classifier's) has one position for the row: it stands at the first."""
        missing = self.shape_BT[1] - part.shape[1] if self.per_token else 0
        return torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], dim=1) if missing else part

    def _add(self, name: str, part: Tensor) -> None:
        before = self._parts.get(name)
        self._parts[name] = part if before is None else before + part


@contextmanager
def capturing(model: nn.Module, collector: Sink) -> Iterator[None]:
    """Inside, every backward pass through `model` fills the collector. The model is as it was afterwards: no hook, no flag stays."""
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        stack.enter_context(_eager_experts(model))
        for handle in attach_sites(model, collector):
            stack.callback(handle.remove)
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = [module for module in model.modules() if module.training]
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True


@contextmanager
def _eager_experts(model: nn.Module) -> Iterator[None]:
    """Fused kernels for mixtures of experts hide which row a token came from; the eager loop shows it."""
    configs: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    before = [(config, config._experts_implementation) for config in configs if hasattr(config, "_experts_implementation")]
    for config, _ in before:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, value in before:
            config._experts_implementation = value
