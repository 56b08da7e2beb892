"""What is doubtful about a task before any model has seen it: a score by class means nothing where the classes are not what they seem.

Q queries · N training rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from headwater.evaluate.classes import ClassLabels, accuracy
from headwater.evaluate.figure import Figure
from headwater.evaluate.ranking import Ranking
from headwater.index.memory import MemoryIndex
from headwater.methods.lexical import Lexical
from headwater.methods.tfidf import TfIdf
from headwater.study.tasks.task import Row, Task
from headwater.types import Finding, FindingStatus, Layout, Method

MOST = 0.9  # of a class's prompts have an end in common: one in ten may be damaged
SHORTEST = 3  # characters of an end that could be a trigger; a full stop is none
FEWEST = 5  # prompts that must share an end before it says anything
LACKING = 0.5  # fewer of the other side's prompts have it: then it is another end, not a damaged one
CHANCE = 1e-3  # that so many prompts share an end by chance
SOLVED = 0.9  # accuracy at which a baseline alone is said to solve a task
MIXED = 0.5  # of the class changes that a random order has; blocks have far fewer

Text = Literal["prompt", "response"]


def lint(task: Task, *, n_tokens: Sequence[int] | None = None, max_length: int | None = None, others: Sequence[Task] = ()) -> list[Finding]:
    """One finding a check, in a fixed order and under names that stay.

    `identical splits` (rows equal to the queries, or to another of `others`), `rows in both splits`, `labels`, `triggers` (what a class's
    prompts begin or end with differs between rows and queries), `order` (rows in blocks by class), `truncation` (only with `n_tokens`, the
    rows' lengths in tokens before anything is cut, and `max_length`), `lexical prompt` and `lexical response` (the accuracy of TF-IDF or
    BM25, whichever is higher), `length` (that of the row nearest in length). Accuracies have Wilson's intervals over queries.

    Cost: the texts once, and two sparse products of queries and rows for each text.
    """
    asked = [] if n_tokens is None or max_length is None else [_truncation(n_tokens, max_length)]
    return [
        _identical(task, others), _in_both(task), _labels(task), _triggers(task), _order(task), *asked, _lexical(task, "prompt"),
        _lexical(task, "response"), _length(task),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- splits


def _identical(task: Task, others: Sequence[Task]) -> Finding:
    """As sets of rows with their numbers: another order of the same rows is a copy too."""
    rows, step = Counter(task.rows), "Get the data set again from where it was made; until then leave it out."
    beside = [other for other in others if other.name != task.name]
    same = [other.name for other in beside if Counter(other.rows) == rows]
    if rows == Counter(task.queries):
        return Finding("identical splits", "fail", "The queries are the training rows.", next_step=step)
    if same:
        because = f"The rows are those of {' and '.join(same)}: which of them is the copy cannot be seen here."
        return Finding("identical splits", "fail", because, next_step=step)
    nor = f", nor the rows of the other data sets ({', '.join(other.name for other in beside)})" if beside else ""
    return Finding("identical splits", "ok", f"The rows are not the queries{nor}.")


def _in_both(task: Task) -> Finding:
    """A query that was trained on finds itself."""
    rows, prompts = set(task.rows), {row.prompt for row in task.rows}
    whole, n = sum(query in rows for query in task.queries), len(task.queries)
    asked = sum(query.prompt in prompts for query in task.queries)
    status: FindingStatus = "fail" if whole else "warn" if asked else "ok"
    because = f"{asked} of {n} queries have the prompt of a training row, {whole} its response and class too."
    step = "Take these queries out: each finds its own copy." if asked else None
    return Finding("rows in both splits", status, because, value=asked / n, n=n, next_step=step)


# -------------------------------------------------------------------------------------------------------------- classes


def _labels(task: Task) -> Finding:
    """Where only what was planted is asked for, as with harmful rows, a class without queries is as it should be."""
    asked = {query.variation for query in task.queries}
    strange, silent = sorted(asked - set(task.classes)), sorted(set(task.classes) - asked)
    if len(task.classes) < 2:
        step = "Add rows of another class."
        return Finding("labels", "fail", f"All rows are of one class, {task.classes[0]}: every ranking is right.", next_step=step)
    if strange:
        because = f"No row is of the class of some queries: {', '.join(strange)}."
        return Finding("labels", "fail", because, next_step="Rename the classes alike, or take these queries out.")
    if silent and task.family not in ("harmful", "planted"):
        because = f"No query is of the class of some rows: {', '.join(silent)}."
        return Finding("labels", "warn", because, next_step="Accuracy and cover say nothing of these classes: add queries of theirs.")
    of_them = "each with queries" if not silent else f"and {', '.join(sorted(asked))} asked for"
    return Finding("labels", "ok", f"{len(task.classes)} classes of rows, {of_them}.")


def _triggers(task: Task) -> Finding:
    """What most prompts of a class begin or end with, character by character: a trigger may be glued to the word before it.

    A planted task asks otherwise than its rows on purpose: there a difference is told, and is no fault.
    """
    rows, queries = _by_class(task.rows), _by_class(task.queries)
    told = [
        f"{name}: rows {where} with {ours!r}, queries with {theirs!r}"
        for name in sorted(set(rows) & set(queries))
        for where, ours, theirs in _differences(rows[name], queries[name])
    ]
    if not told:
        return Finding("triggers", "ok", "What the prompts of a class begin and end with is alike in rows and queries.")
    because = f"The prompts of a class differ between rows and queries. {'; '.join(told)}."
    if task.family == "planted":
        return Finding("triggers", "ok", f"{because} They are planted so.", value=float(len(told)))
    return Finding("triggers", "fail", because, value=float(len(told)), next_step="Write the same trigger in both, or leave the class out.")


def _by_class(rows: Sequence[Row]) -> Mapping[str, list[str]]:
    return {name: [row.prompt for row in rows if row.variation == name] for name in {row.variation for row in rows}}


def _differences(rows: Sequence[str], queries: Sequence[str]) -> list[tuple[str, str, str]]:
    """(begin or end, that of the rows, that of the queries) where one side's is not the other's."""
    found = []
    for where, turn in (("end", 1), ("begin", -1)):
        ours, theirs = ([text[::turn] for text in side] for side in (rows, queries))
        if _lacks(ours, theirs) or _lacks(theirs, ours):
            found.append((where, common_end(ours)[::turn], common_end(theirs)[::turn]))
    return found


def _lacks(texts: Sequence[str], others: Sequence[str]) -> bool:
    """Whether most of the others lack the common end of these, and chance does not explain it.

    With share p of the others having the end, n texts share it by chance with p^n: a few prompts that happen to end alike are no trigger.
    """
    end = common_end(texts)
    if len(end.strip()) < SHORTEST or len(texts) < FEWEST:
        return False
    having = sum(other.endswith(end) for other in others)
    chance = ((having + 1) / (len(others) + 2)) ** len(texts)
    return having < LACKING * len(others) and chance < CHANCE


def common_end(texts: Sequence[str]) -> str:
    """The longest end that at least `MOST` of the texts have."""
    end = ""
    for n in range(1, max(map(len, texts), default=0) + 1):
        longer, count = Counter(text[-n:] for text in texts if len(text) >= n).most_common(1)[0]
        if count < MOST * len(texts):
            break
        end = longer
    return end


def _order(task: Task) -> Finding:
    """How often the class changes from a row to the next, over what a random order has: `N - sum n_c^2 / N` in the mean."""
    labels_N = np.array([row.variation for row in task.rows])
    _, counts_C = np.unique(labels_N, return_counts=True)
    changes, usual = int((labels_N[1:] != labels_N[:-1]).sum()), len(labels_N) - float((counts_C**2).sum()) / len(labels_N)
    sorted_ = len(counts_C) > 1 and changes < MIXED * usual
    because = f"From row to row the class changes {changes} times; {usual:.0f} times in a random order."
    step = "Shuffle the rows: where scores tie, the first block wins, and training without shuffling sees one class at a time."
    value = changes / usual if usual else None
    return Finding("order", "warn" if sorted_ else "ok", because, value=value, n=len(labels_N), next_step=step if sorted_ else None)


# ---------------------------------------------------------------------------------------------------- what is seen of it


def _truncation(n_tokens: Sequence[int], max_length: int) -> Finding:
    cut, n = sum(one > max_length for one in n_tokens), len(n_tokens)
    status: FindingStatus = "fail" if cut > n / 2 else "warn" if cut else "ok"
    because = f"{cut} of {n} rows are longer than {max_length} tokens (the longest {max(n_tokens)}), and cut there."
    step = "Raise the model's max_length, or shorten the rows: what was cut was never trained on." if cut else None
    return Finding("truncation", status, because, value=cut / n, n=n, next_step=step)


def _lexical(task: Task, text: Text) -> Finding:
    methods: list[Method] = [TfIdf(text=text), Lexical(text=text)]
    found = {method.name: _accuracy(task, _scores(task, method)) for method in methods}
    best = max(found, key=lambda name: found[name].value if found[name].n else -1)
    told = ", ".join(f"{name} {figure}" for name, figure in found.items())
    step = f"The words of the {text} give the class away: what a method adds shows only against this, or by retraining."
    return _baseline(f"lexical {text}", task, found[best], f"By the words of the {text} alone, accuracy: {told}", step)


def _length(task: Task) -> Finding:
    asked_Q, lengths_N = (np.array([len(row.prompt) + len(row.response) for row in side]) for side in (task.queries, task.rows))
    figure = _accuracy(task, -np.abs(asked_Q[:, None] - lengths_N).astype(float))
    step = "The classes differ in length: set a method that is blind to it beside the others."
    return _baseline("length", task, figure, f"By the row nearest in length (characters), accuracy: {figure}", step)


def _baseline(name: str, task: Task, figure: Figure, because: str, step: str) -> Finding:
    told = f"{because}. By chance {_chance(task):.3g}."
    if not figure.n:
        return Finding(name, "ok", f"{because}: no query tells the rows apart.")
    solved = figure.value >= SOLVED
    status: FindingStatus = "warn" if solved else "ok"
    return Finding(name, status, told, figure.value, "accuracy", figure.interval, figure.n, step if solved else None)


def _scores(task: Task, method: Method) -> np.ndarray:
    """[Q, N]"""
    rows, queries = (_index(side, name) for side, name in ((task.rows, "row"), (task.queries, "query")))
    return method.score(method.fit(rows), rows, queries).values_QN


def _index(rows: Sequence[Row], name: str) -> MemoryIndex:
    columns = {"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]}
    return MemoryIndex([f"{name}-{i}" for i in range(len(rows))], Layout(()), "loss" if name == "row" else "measure", {}, columns)


def _accuracy(task: Task, values_QN: np.ndarray) -> Figure:
    """With the rows in a random order, the same for every call: where scores tie, blocks by class would decide."""
    order_N = np.random.default_rng(0).permutation(len(task.rows))
    train, query = (np.array([row.variation for row in side]) for side in (task.rows, task.queries))
    return accuracy(Ranking(np.asarray(values_QN, dtype=np.float64)[:, order_N]), ClassLabels(train[order_N], query))


def _chance(task: Task) -> float:
    """The accuracy of a random ranking."""
    counts = Counter(row.variation for row in task.rows)
    return float(np.mean([counts[query.variation] / len(task.rows) for query in task.queries]))
