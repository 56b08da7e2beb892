"""Which tokens of a training row, for which tokens of the output: a pair's score taken apart on both sides.

T positions of the query · S positions of the row · D numbers of a gradient

A gradient is a sum over positions: `h_q = sum_t h_qt`, `g_n = sum_s g_ns`, each term what the parameters did where that position was
read. A score that is a product of the two is then a sum over pairs of positions, and exactly so (Grosse et al. 2023, eq. 30-31).

What a position means: at position t the model reads token t and predicts token t + 1. So the marked token is the one *before* the one that
it helped, or taught, to predict; and through attention it has its part in everything after it. A prompt has no loss of its own, but its
positions have such parts. The sign of a single token is less to be trusted than that of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headwater.corpus import collate
from headwater.gradient.rows import row_engine
from headwater.methods import GradCos, GradDot
from headwater.methods.influence import Influence
from headwater.methods.shared import live
from headwater.model import measures
from headwater.model.session import Session
from headwater.types import Example, Index, Layout, Measure, State, UsageError

if TYPE_CHECKING:
    import pandas as pd


TOGETHER = 64  # positions that are solved for together


@dataclass(frozen=True, eq=False)
class TokenScores:
    """`values_TS[t, s]`: what position s of the row adds to the pair's score through position t of the query. They sum to the score.

    In the method's unit. The token at a position is the one read there, before the one predicted.
    """

    values_TS: np.ndarray
    query_tokens: tuple[str, ...]
    row_tokens: tuple[str, ...]
    query_id: str
    row_id: str
    method: str
    unit: str | None

    @property
    def total(self) -> float:
        return float(self.values_TS.sum())

    @property
    def by_query_token(self) -> np.ndarray:
        """[T] each position of the query, over the whole row."""
        return self.values_TS.sum(1)

    @property
    def by_row_token(self) -> np.ndarray:
        """[S] each position of the row, for the whole query."""
        return self.values_TS.sum(0)

    def to_pandas(self) -> pd.DataFrame:
        """[T, S] under (position, token) on both sides."""
        import pandas as pd

        sides = {"query": self.query_tokens, "row": self.row_tokens}
        index, columns = (
            pd.MultiIndex.from_arrays([range(len(tokens)), tokens], names=[f"{name}_position", f"{name}_token"])
            for name, tokens in sides.items()
        )
        return pd.DataFrame(self.values_TS, index=index, columns=columns)

    def to_json(self) -> dict[str, Any]:
        """What trace.json keeps: six digits of each number; null where one is not finite."""
        rows = [[float(f"{value:.6g}") if np.isfinite(value) else None for value in row] for row in self.values_TS.tolist()]
        return {"id": self.row_id, "row_tokens": list(self.row_tokens), "values": rows}

    def plot(self, path: str | Path | None = None) -> Any:
        """The matrix as a picture, positive and negative in two colours; written to `path` where given. Returns the matplotlib figure."""
        from matplotlib.figure import Figure

        n_query, n_row = self.values_TS.shape
        figure = Figure(figsize=(2 + 0.28 * n_row, 1.6 + 0.28 * n_query), layout="constrained")
        axes, largest = figure.add_subplot(), float(np.abs(self.values_TS).max(initial=0.0)) or 1.0
        image = axes.imshow(self.values_TS, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        axes.set_xticks(range(n_row), [_shown(token) for token in self.row_tokens], rotation=90, fontsize=8)
        axes.set_yticks(range(n_query), [_shown(token) for token in self.query_tokens], fontsize=8)
        axes.set(xlabel="token read in the training row", ylabel="token read in the query")
        axes.set_title(f"{self.method}: {self.total:.3g}{f' {self.unit}' if self.unit else ''}", fontsize=10)
        figure.colorbar(image, ax=axes)
        if path is not None:
            figure.savefig(path)
        return figure

    def _repr_html_(self) -> str:
        lines = (("query", self.query_tokens, self.by_query_token), ("row", self.row_tokens, self.by_row_token))
        return "".join(f"<p><b>{name}</b> {_shaded(tokens, values)}</p>" for name, tokens, values in lines)

    def __repr__(self) -> str:
        sizes = f"{len(self.query_tokens)} x {len(self.row_tokens)} positions"
        return f"TokenScores of query {self.query_id} and row {self.row_id} by {self.method}: {sizes}, {self.total:.4g} in all"


def check_supported(method: Any) -> None:
    """Raise UsageError unless the method's score is one product of a query's and a row's gradient."""
    if not isinstance(method, GradDot | GradCos | Influence):
        raise UsageError(
            f"{method.name} has no scores of tokens: they need a score that is one product of gradients. Take grad_dot, grad_cos or an "
            "influence (fisher, ekfac, ...)."
        )


def token_scores(
    method: Any, state: State, index: Index, *, session: Session, query: Example, row: Example, measure: Measure
) -> TokenScores:
    """The pair's score by position, on both sides: the query's terms, solved by the method's curvature, times the row's.

    The row's gradient is computed anew, so the sum differs from the score by what rounding to the stored dtype took. Cost: a pass over
    each of the two, T solves, T S D multiplications; memory (T + S) D numbers, D the whole model's in exact mode. Raises UsageError for a
    method that is no product of gradients.
    """
    check_supported(method)
    query_layout, row_layout = _layouts(method, index)
    h_TD = positions(session, query_layout, query, measure)
    g_SD = positions(session, row_layout, row, measures.LOSS)
    solved_TD = _solved(method, state, index, h_TD).to(g_SD)
    values_TS = -(solved_TD @ g_SD.T) / _divisor(method, index, h_TD, g_SD)
    query_tokens, row_tokens = (token_texts(session, example) for example in (query, row))
    return TokenScores(values_TS.double().cpu().numpy(), query_tokens, row_tokens, query.id, row.id, method.name, method.unit)


def positions(session: Session, layout: Layout, example: Example, measure: Measure) -> Tensor:
    """[T, D] what each position adds to the gradient of the measure. A contrast's two responses stand in the same positions.

    Memory T D numbers. Cost: one pass over the example.
    """
    with row_engine(session, layout, per_token=True) as engine:
        return engine.rows(collate([example], pad_id=session.pad_id), measure).gradient_BD[0]


def token_texts(session: Session, example: Example) -> tuple[str, ...]:
    """[T] the token at each position; where a contrast's second response has another, "first|second"."""
    own = [session.tokenizer.decode([token]) for token in example.tokens.tolist()]
    if example.alternative is None:
        return tuple(own)
    other = [session.tokenizer.decode([token]) for token in example.alternative.tokens.tolist()]
    width = max(len(own), len(other))
    both = zip(own + [""] * (width - len(own)), other + [""] * (width - len(other)), strict=True)
    return tuple(a if a == b else f"{a}|{b}" for a, b in both)


def _layouts(method: Any, index: Index) -> tuple[Layout, Layout]:
    """(of the query's terms, of the row's): whole where the curvature is the model's own, and the row's too where nothing is sketched."""
    mode = method.mode if isinstance(method, Influence) else "stored"
    if mode == "stored":
        return index.layout, index.layout
    whole = live(index).source.layout
    return whole, whole if mode == "exact" else index.layout


def _solved(method: Any, state: State, index: Index, h_TD: Tensor) -> Tensor:
    """[T, D] as the rows are scanned: the solve is linear, so each position is solved for by itself."""
    if not isinstance(method, Influence):
        return h_TD
    return torch.cat([method.solve_some(state, index, some_KD).value for some_KD in h_TD.split(TOGETHER)])


def _divisor(method: Any, index: Index, h_TD: Tensor, g_SD: Tensor) -> float:
    """N; for a cosine the product of the two lengths (1 where one is zero: there is nothing to divide)."""
    if not isinstance(method, GradCos):
        return float(len(index))
    return float(h_TD.sum(0).norm() * g_SD.sum(0).norm()) or 1.0


def _shown(token: str) -> str:
    return token.replace("\n", "\\n").replace("$", r"\$").strip() or "␣"


def _shaded(tokens: tuple[str, ...], values: np.ndarray) -> str:
    """Tokens over a colour as strong as their share of the largest."""
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    colours = [f"rgba({'31,119,180' if value > 0 else '214,39,40'},{abs(value) / largest:.2f})" for value in values.tolist()]
    marks = zip(tokens, values.tolist(), colours, strict=True)
    return "".join(f'<span style="background:{colour}" title="{value:.3g}">{escape(token)}</span>' for token, value, colour in marks)
