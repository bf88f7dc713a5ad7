"""Parameter groups, learning rates, gradient norms."""

import dataclasses
import math

import pytest
import torch
from stand_in_training import RECIPE, TinyModel
from torch import nn

from training.optim import (
    gradient_norm,
    load_optimizer_state,
    make_optimizer,
    make_schedule,
    parameter_groups,
    warmup_of,
)
from training.recipe import HeadOptions, PretrainRecipe


class Attention(nn.Module):
    """Parameters by VideoMAE's names."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.norm = nn.LayerNorm(4)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.gate = nn.Parameter(torch.zeros(2, 3))
        self.proj = nn.Linear(4, 5)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    def no_weight_decay(self):
        return {"gate"}


def names_by_decay(model, decay):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, decay)
    return {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_biases_norms_and_tokens_have_no_decay():
    model = nn.ModuleDict({"encoder": Attention()})
    model.no_weight_decay = lambda: {"*gate"}
    plain = {"q_bias", "v_bias", "norm.weight", "norm.bias", "mask_token", "gate", "proj.bias"}
    assert names_by_decay(model, 0.05) == {
        0.0: {f"encoder.{name}" for name in plain},
        0.05: {"encoder.qkv.weight", "encoder.proj.weight"},
    }
    assert names_by_decay(Attention(), 0.05)[0.05] == {"qkv.weight", "proj.weight"}


def test_learning_rate_scales_with_the_batch():
    recipe = PretrainRecipe(name="r", heads={"pixels": HeadOptions()}, base_lr=1.5e-4, betas=(0.9, 0.95))
    assert make_optimizer(TinyModel(), recipe, batch_size=768).defaults["lr"] == pytest.approx(4.5e-4)
    given = make_optimizer(TinyModel(), recipe, batch_size=64, base_lr=1e-3)
    assert given.defaults["lr"] == pytest.approx(2.5e-4)
    assert [group["betas"] for group in given.param_groups] == [(0.9, 0.95)] * 2
    assert sorted(group["weight_decay"] for group in given.param_groups) == [0, 0.05]


def rates(steps, warmup, *, upto, batch_size=512, base_lr=1.5e-4, min_lr=1e-5, start=0):
    optimizer = make_optimizer(TinyModel(), RECIPE, batch_size=batch_size, base_lr=base_lr)
    schedule = make_schedule(optimizer, steps=steps, warmup_steps=warmup, min_lr=min_lr, batch_size=batch_size)
    found = []
    for step in range(start, upto):
        schedule.step_update(step)
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        found.append(rate)
    return found


def test_warm_up_is_linear_and_the_rest_a_cosine():
    found = rates(50, 8, upto=60)
    peak, end, first = 3e-4, 2e-5, 2e-6
    for k, rate in enumerate(found):
        if k < 8:
            expected = first + (peak - first) * k / 8
        elif k < 50:
            expected = end + (peak - end) * (1 + math.cos(math.pi * (k - 8) / 42)) / 2
        else:
            expected = end
        assert rate == pytest.approx(expected, rel=1e-12), k


def test_the_rate_follows_from_the_step_alone():
    assert rates(50, 8, upto=60)[33:] == rates(50, 8, upto=60, start=33)


def test_a_peak_below_the_end_s_rate_stays_where_it_is():
    assert rates(20, 0, upto=25, base_lr=5e-6) == pytest.approx([1e-5] * 25)


def test_warm_up_is_at_most_a_tenth_unless_asked_for():
    recipe = PretrainRecipe(name="r", heads={"pixels": HeadOptions()}, warmup_epochs=40)
    assert warmup_of(recipe, steps=800_000, steps_per_epoch=312.5) == 12_500
    assert warmup_of(recipe, steps=205, steps_per_epoch=312.5) == 20
    assert warmup_of(recipe, steps=205, steps_per_epoch=312.5, asked=200) == 200
    assert warmup_of(recipe, steps=5, steps_per_epoch=0.3) == 0
    # MME's table 15: 5 of 30 epochs on Something-Something V2
    short = dataclasses.replace(recipe, epochs=30, warmup_epochs=5)
    assert warmup_of(short, steps=3000, steps_per_epoch=100) == 500
    assert warmup_of(short, steps=300, steps_per_epoch=100) == 50
    assert warmup_of(short, steps=6000, steps_per_epoch=100) == 500
    nothing_else = dataclasses.replace(recipe, epochs=40)
    assert warmup_of(nothing_else, steps=400, steps_per_epoch=10) == 40
    with pytest.raises(ValueError, match="--warmup-steps is 205"):
        warmup_of(recipe, steps=205, steps_per_epoch=1, asked=205)


@pytest.mark.parametrize("largest", [None, 1.0, 100.0])
def test_gradient_norm_and_clipping(largest):
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[2.0, 3.0]]), torch.tensor([6.0])
    assert gradient_norm(model, largest).item() == pytest.approx(7)
    factor = 1 / 7 if largest == 1.0 else 1.0
    torch.testing.assert_close(model.weight.grad, torch.tensor([[2.0, 3.0]]) * factor)
    torch.testing.assert_close(model.bias.grad, torch.tensor([6.0]) * factor)


def test_a_checkpoint_of_a_fused_optimizer_loads_into_a_plain_one():
    fused = make_optimizer(TinyModel(), RECIPE, batch_size=4)
    state = fused.state_dict()
    for group in state["param_groups"]:
        group["fused"] = True
    plain = make_optimizer(TinyModel(), RECIPE, batch_size=4)
    load_optimizer_state(plain, state)
    assert [group["fused"] for group in plain.param_groups] == [None, None]
