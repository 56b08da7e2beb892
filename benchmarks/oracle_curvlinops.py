"""What curvlinops makes of a model, its rows and some vectors: run by `benchmarks.oracles`, in an environment that has curvlinops.

    python oracle_curvlinops.py CASES.pt RESULTS.pt

B rows · T positions · C classes (a vocabulary) · V vectors
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from curvlinops import EKFACLinearOperator, GGNLinearOperator, KFACLinearOperator
from torch import Tensor, nn
from transformers import AutoConfig, BertForSequenceClassification, GPT2LMHeadModel

MODELS = {"bert": BertForSequenceClassification, "gpt2": GPT2LMHeadModel}


class Logits(nn.Module):
    """[B, C] a classifier's logits; [B, C, T] a language model's, before each of its targets."""

    def __init__(self, model: nn.Module, *, causal: bool) -> None:
        super().__init__()
        self.model, self.causal = model, causal

    def forward(self, tokens_BT: Tensor) -> Tensor:
        given = {"use_cache": False} if self.causal else {"attention_mask": torch.ones_like(tokens_BT)}
        logits = self.model(input_ids=tokens_BT, **given).logits
        return logits[:, :-1].transpose(1, 2) if self.causal else logits


def products(case: dict[str, Any]) -> dict[str, list[Tensor]]:
    """{operator: [*parameter, V] for each parameter}, of the loss summed over rows."""
    config = AutoConfig.for_model(case["model"], **case["config"])
    config._attn_implementation = "eager"
    model = MODELS[case["model"]](config).double().eval()
    model.load_state_dict(case["weights"])
    network = Logits(model, causal=case["causal"])
    named = dict(model.named_parameters())
    parameters = [named[name] for name in case["parameters"]]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    given = (network, nn.CrossEntropyLoss(reduction="sum"), parameters, [(case["tokens"], case["targets"])])
    found = {}
    for name, (operator, options) in OPERATORS.items():
        if name in case["operators"]:
            made = operator(*given, check_deterministic=False, **options)
            found[name] = made @ [vectors.clone() for vectors in case["vectors"]]
    return found


OPERATORS = {
    "ggn": (GGNLinearOperator, {}),
    "kfac": (KFACLinearOperator, {"fisher_type": "empirical"}),
    "ekfac": (EKFACLinearOperator, {"fisher_type": "empirical"}),
}


if __name__ == "__main__":
    cases = torch.load(sys.argv[1], weights_only=False)
    torch.save({name: products(case) for name, case in cases.items()}, sys.argv[2])
