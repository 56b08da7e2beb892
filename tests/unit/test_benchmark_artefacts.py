"""The benchmark of artefacts at a size that takes seconds: exact influence on its model, its pairs, and that every figure is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from benchmarks import artefacts
from benchmarks.artefacts import DAMPING, SMALL, WORLDS, OneBlock, Study, accepted, drawn, measure

from headwater.progress import quiet


@pytest.fixture(scope="module")
def pairs() -> artefacts.Pairs:
    rng = np.random.default_rng(0)
    return drawn(rng, rng.permutation(artefacts.KEYS), rng.integers(2, size=400), WORLDS["artefact"])


def test_overlap_gives_the_label_away_in_one_world_alone(pairs: artefacts.Pairs) -> None:
    rng, labels_N = np.random.default_rng(1), np.arange(400) % 2
    clean = drawn(rng, rng.permutation(artefacts.KEYS), labels_N, WORLDS["clean"])
    for one, linked in ((pairs, True), (clean, False)):
        true_N = one.y_N.numpy() == 1
        difference = float((one.overlap_N[true_N] == 1).mean() - (one.overlap_N[~true_N] == 1).mean())
        assert (difference > 0.8) if linked else (abs(difference) < 0.2)


def test_influence_is_exact_on_a_model_of_two_classes(pairs: artefacts.Pairs) -> None:
    net = OneBlock(width=2, hidden=2)
    theta_D, few = net.drawn(3), artefacts.Pairs(pairs.tokens_NT[:12], pairs.y_N[:12], pairs.overlap_N[:12])
    queries_QT = pairs.tokens_NT[20:22]
    jacobian_NOD = torch.func.jacrev(lambda t: net(t, few.tokens_NT))(theta_D)
    p_NO = net(theta_D, few.tokens_NT).softmax(1)
    hessians_NOO = torch.diag_embed(p_NO) - p_NO[:, :, None] * p_NO[:, None]
    matrix_DD = torch.einsum("nod,nop,npe->de", jacobian_NOD, hessians_NOO, jacobian_NOD) / 12 + DAMPING * torch.eye(net.size)
    rows_ND = torch.func.jacrev(lambda t: torch.nn.functional.cross_entropy(net(t, few.tokens_NT), few.y_N, reduction="none"))(theta_D)
    h_QD = torch.func.jacrev(lambda t: net(t, queries_QT).log_softmax(1)[:, 1])(theta_D)
    expected_QN = -(torch.linalg.solve(matrix_DD, h_QD.T).T @ rows_ND.T) / 12
    np.testing.assert_allclose(Study(net, theta_D, few).influence(queries_QT), expected_QN.numpy(), rtol=1e-6, atol=1e-9)


def test_every_figure_is_there() -> None:
    with quiet():
        result = measure(SMALL, seeds=range(2))
    json.dumps(result, allow_nan=False)
    assert len(result["by_seed"]["artefact"]) == len(result["by_seed"]["clean"]) == 2
    for one in result["by_seed"]["artefact"]:
        assert "undetermined" in one or {"a", "enrichment", "removal", "deciles", "a_length", "a_not_fooled"} <= set(one)
    assert set(result["accepted"].values()) <= {"reached", "missed", "undetermined"}


def test_lines_without_a_figure_are_undetermined() -> None:
    nothing = {"a": None, "enrichment": None}
    assert set(accepted({"artefact": nothing, "clean": nothing}).values()) == {"undetermined"}
    there = {"a": 0.3, "enrichment": 0.1, "removal_standard_errors": 3.0}
    assert set(accepted({"artefact": there, "clean": {"a": 0.0, "enrichment": 0.0}}).values()) == {"reached"}
    assert accepted({"artefact": there, "clean": {"a": -0.2, "enrichment": 0.0}})["clean world: |mean a| <= .05"] == "missed"
