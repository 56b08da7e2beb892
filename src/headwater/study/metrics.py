"""The paper's metrics of a table of scores and what it should have shown beside them. Q queries · N training rows"""

from __future__ import annotations

import numpy as np

from headwater.evaluate.classes import ClassLabels, accuracy, cover
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.hubs import hub_share
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.retrieval import auroc_Q, average_precision_Q

NAMES = ("accuracy", "cover", "auroc", "average_precision", "hub_share")


def class_figures(values_QN: np.ndarray, labels: ClassLabels, k: int) -> dict[str, Figure]:
    """Accuracy, cover, AUROC, average precision and hub share, each with its interval over queries."""
    ranking = Ranking(np.asarray(values_QN, dtype=np.float64))
    return {
        "accuracy": accuracy(ranking, labels),
        "cover": cover(ranking, labels, k),
        "auroc": mean_figure(auroc_Q(ranking, labels.same_QN)),
        "average_precision": mean_figure(average_precision_Q(ranking, labels.same_QN)),
        "hub_share": hub_share(ranking)[0],
    }
