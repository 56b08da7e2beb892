"""Generated behaviour: what a model says to a query by itself, and whether that shows the behaviour. Q queries"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from headwater.model.session import Session
from headwater.types import Example

Behaves = Callable[[str, Example], float]
"""Whether a generated text shows the behaviour that a query is about: a truth, or a number."""


@torch.no_grad()
def greedy_answer(session: Session, query: Example) -> list[int]:
    """The most probable tokens after the query's prompt, as many as its response has; fewer where the model ends its answer before.

    Cost: a forward pass over the prompt, and one over each token.
    """
    prompt = torch.from_numpy(query.tokens[: query.last_prompt_position + 1])[None].to(session.device)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": session.pad_id}
    seen = torch.ones_like(prompt)
    answer = session.model.generate(prompt, attention_mask=seen, max_new_tokens=query.n_loss_tokens, **greedy)  # pyright: ignore
    return answer[0, prompt.shape[1] :].tolist()


def greedy_answers(session: Session, queries: Sequence[Example]) -> list[list[int]]:
    return [greedy_answer(session, query) for query in queries]


def shown(answers: Sequence[Sequence[int]], queries: Sequence[Example], *, tokenizer: Any, behaves: Behaves | None) -> np.ndarray:
    """[Q] what `behaves` says of each answer's text; without it 1 where the answer is the query's response to the last token, else 0."""
    if behaves is None:
        pairs = zip(answers, queries, strict=True)
        return np.array([float(list(answer) == query.tokens[query.loss_mask].tolist()) for answer, query in pairs])
    texts = [tokenizer.decode(list(answer), skip_special_tokens=True) for answer in answers]
    return np.array([float(behaves(text, query)) for text, query in zip(texts, queries, strict=True)])


def can_answer(session: Session) -> bool:
    return session.task == "causal-lm" and hasattr(session.model, "generate")
