import copy

import numpy as np
import pytest
import torch

from headwater.model.tiny import tiny_model
from headwater.truth.finetune import (
    Lora,
    Recipe,
    TrainingDiverged,
    epoch_batches,
    finetune,
    lr_factor,
    make_optimizer,
    mean_loss,
)
from headwater.types import DataError, Example, UsageError

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
PAD = 0


@pytest.fixture(scope="module")
def base():
    return tiny_model(0, **SMALL).model


def rows(n, *, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [row(rng.integers(5, 261, size=rng.integers(4, longest)), prompt=2, id=f"{i:032x}") for i in range(n)]


def row(tokens, *, prompt, id="0" * 32):
    tokens = np.asarray(tokens, dtype=np.int64)
    return Example(id=id, tokens=tokens, loss_mask=np.arange(len(tokens)) >= prompt)


def fit(base, examples, **options):
    model = copy.deepcopy(base)
    recipe = Recipe(**({"epochs": 2, "lr": 1e-3, "batch_rows": 4} | options))
    return finetune(model, examples, recipe, pad_id=PAD)


def test_the_loss_is_the_mean_over_all_targets_whatever_the_padding(base):
    examples = rows(5)
    total, targets = 0.0, 0
    for example in examples:
        logits = base(input_ids=torch.from_numpy(example.tokens)[None]).logits[0].log_softmax(-1)
        for t in np.flatnonzero(example.loss_mask):
            total -= logits[t - 1, example.tokens[t]].item()
            targets += 1
    assert targets < sum(example.n_tokens for example in examples)
    torch.testing.assert_close(mean_loss(base, examples, pad_id=PAD).item(), total / targets, rtol=1e-5, atol=1e-5)


def test_a_model_without_logits_to_keep_has_the_same_loss(base):
    class Plain(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, use_cache):
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    torch.testing.assert_close(mean_loss(Plain(base), rows(5), pad_id=PAD), mean_loss(base, rows(5), pad_id=PAD))


def test_prompt_tokens_get_no_loss(base):
    tokens = np.array([1, 10, 11, 12, 13])
    wanted = -base(input_ids=torch.from_numpy(tokens)[None]).logits[0, 3].log_softmax(-1)[13]
    torch.testing.assert_close(mean_loss(base, [row(tokens, prompt=4)], pad_id=PAD), wanted)


def test_position_zero_is_never_a_target(base):
    example = Example(id="0", tokens=np.array([5, 6, 7]), loss_mask=np.array([True, True, True]))
    torch.testing.assert_close(mean_loss(base, [example], pad_id=PAD), mean_loss(base, [row([5, 6, 7], prompt=1)], pad_id=PAD))


def test_training_learns_its_rows(base):
    result = fit(base, rows(8), epochs=40, lr=1e-2)
    assert result.losses[0] > 5 > 0.5 > result.losses[-1]
    assert result.steps == len(result.losses) == 80
    assert result.seconds > 0


def test_the_same_recipe_gives_the_same_weights(base):
    torch.manual_seed(1)
    first = fit(base, rows(10))
    torch.manual_seed(2)
    again, other = fit(base, rows(10)), fit(base, rows(10), seed=1)
    assert first.losses == again.losses
    torch.testing.assert_close(first.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
    assert first.losses != other.losses


def test_global_random_state_is_left_alone(base):
    before = torch.random.get_rng_state()
    fit(base, rows(4), lora=Lora(r=2))
    torch.testing.assert_close(torch.random.get_rng_state(), before)


def test_every_row_comes_once_an_epoch_and_epochs_differ():
    examples, recipe = rows(150), Recipe(epochs=2, lr=1e-3, batch_rows=4, seed=3)
    orders = [[example.id for batch in epoch_batches(examples, recipe, epoch=epoch) for example in batch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == [example.id for example in examples]
    assert orders[0] != orders[1]


def test_batches_hold_rows_of_similar_length():
    batches = list(epoch_batches(rows(256, longest=60), Recipe(epochs=1, lr=1e-3, batch_rows=8), epoch=0))
    padded = sum(len(batch) * max(example.n_tokens for example in batch) for batch in batches)
    assert padded < 1.15 * sum(example.n_tokens for batch in batches for example in batch)


def test_removing_rows_keeps_the_others_in_order():
    """With one row to a batch and one length the shuffle is all that is left of the order: it must not depend on who else is there."""
    examples = [row(np.full(5, 9), prompt=2, id=f"{i:032x}") for i in range(40)]
    recipe = Recipe(epochs=1, lr=1e-3, batch_rows=64, seed=5)
    (whole,) = epoch_batches(examples, recipe, epoch=0)
    (fewer,) = epoch_batches(examples[::2], recipe, epoch=0)
    kept = {example.id for example in examples[::2]}
    assert [example.id for example in whole if example.id in kept] == [example.id for example in fewer]


def test_the_learning_rate_rises_then_falls():
    recipe = Recipe(epochs=1, lr=1e-3, warmup=0.1)
    factors = [lr_factor(step, total=100, recipe=recipe) for step in range(100)]
    assert factors[0] < factors[9] < factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01
    assert lr_factor(99, total=100, recipe=recipe.model_copy(update={"decay": "none"})) == 1.0
    assert lr_factor(55, total=100, recipe=recipe.model_copy(update={"decay": "linear"})) == 0.5


def test_weight_decay_spares_vectors(base):
    groups = make_optimizer(base, Recipe(epochs=1, lr=1e-3, weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim == 2 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])


def test_lora_trains_its_adapters_only(base):
    model = copy.deepcopy(base)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained = finetune(model, rows(8), Recipe(epochs=3, lr=1e-2, lora=Lora(r=2, targets=("q_proj", "v_proj"))), pad_id=PAD).model
    changed = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert len(changed) == 2 * 2 * 2
    assert all("lora_" in name for name in changed)
    for name, p in trained.get_base_model().named_parameters():
        if "lora_" not in name:
            torch.testing.assert_close(p, before[name.replace(".base_layer", "")], rtol=0, atol=0)
    assert any(p.abs().max() > 0 for name, p in trained.named_parameters() if "lora_B" in name)


def test_a_rate_that_is_too_high_is_reported_as_such(base):
    with pytest.raises(TrainingDiverged, match="learning rate that is too high"):
        fit(base, rows(8), lr=1e30, epochs=10, warmup=0)


def test_nothing_to_train_on_is_refused(base):
    with pytest.raises(DataError, match="no rows"):
        fit(base, [])
    with pytest.raises(DataError, match="1 of 2 rows have no target"):
        fit(base, [row([5, 6, 7], prompt=1), row([5, 6, 7], prompt=3)])


def test_a_frozen_model_is_refused(base):
    with pytest.raises(UsageError, match="nothing to train"):
        finetune(copy.deepcopy(base).requires_grad_(False), rows(2), Recipe(epochs=1, lr=1e-3), pad_id=PAD)


def test_the_model_keeps_its_mode(base):
    assert not fit(base, rows(2)).model.training
    assert finetune(copy.deepcopy(base).train(), rows(2), Recipe(epochs=1, lr=1e-3), pad_id=PAD).model.training


def test_a_recipe_has_no_unknown_options_and_no_impossible_ones():
    for wrong in ({"epoch": 3}, {"epochs": 0}, {"lr": 0.0}, {"warmup": 1.0}, {"decay": "step"}):
        with pytest.raises(ValueError):
            Recipe(**({"epochs": 1, "lr": 1e-3} | wrong))
