"""The schedule against the original's table, and which parameters decay."""

import pytest
import torch
from torch import nn

from minigpt4.common.optims import constant_lr, linear_warmup_cosine_lr, parameter_groups


def test_a_warmup_longer_than_an_epoch_goes_on(meta):
    """The original began again with each epoch; ours goes on. Its own table says what schedule that was."""
    schedule = dict(total_steps=30, init_lr=1.0, min_lr=0.0, warmup_lr=0.0, warmup_steps=15)
    table = {(e, i): lr for e, i, lr in meta["lr"]["warmup_longer_than_epoch(restarts)"]}
    first = [linear_warmup_cosine_lr(i, **schedule) for i in (0, 5, 9)]
    assert first == pytest.approx([table[0, 0], table[0, 5], table[0, 9]])
    assert table[1, 0] == 0  # the fault
    assert linear_warmup_cosine_lr(10, **schedule) == pytest.approx(10 / 15)
    rates = [linear_warmup_cosine_lr(i, **schedule) for i in range(15)]
    assert rates == sorted(rates)
    assert linear_warmup_cosine_lr(15, **schedule) == pytest.approx(table[1, 5])  # past the warm-up they agree


def test_without_warmup():
    schedule = dict(total_steps=10, init_lr=2.0, min_lr=1.0, warmup_lr=0.5, warmup_steps=0)
    assert linear_warmup_cosine_lr(0, **schedule) == 2.0
    assert linear_warmup_cosine_lr(5, **schedule) == pytest.approx(1.5)
    assert linear_warmup_cosine_lr(10, **schedule) == pytest.approx(1.0)
    assert constant_lr(0, **schedule) == 2.0


def test_constant():
    schedule = dict(total_steps=10, init_lr=2.0, min_lr=1.0, warmup_lr=0.0, warmup_steps=4)
    assert [constant_lr(i, **schedule) for i in (0, 2, 4, 9)] == [0.0, 1.0, 2.0, 2.0]


def test_what_decays():
    model = nn.Module()
    model.proj = nn.Linear(2, 3)
    model.ln_vision = nn.Linear(2, 2, bias=False)  # two dimensions, but "ln" in its name
    model.bn = nn.Linear(2, 2, bias=False)
    model.scale = nn.Parameter(torch.ones(3))
    model.tokens = nn.Parameter(torch.ones(1, 2, 3))
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    decay, none = parameter_groups(model, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decay["params"]} == {"proj.weight", "tokens"}
    assert {names[id(p)] for p in none["params"]} == {"proj.bias", "ln_vision.weight", "bn.weight", "scale"}
    assert (decay["weight_decay"], none["weight_decay"]) == (0.05, 0.0)


def test_the_models_groups_are_the_originals(make_model, meta):
    run = meta["train_run"]
    optimizer = torch.optim.AdamW(parameter_groups(make_model(), run["run_cfg"]["weight_decay"]), lr=1e-4)
    ours = [
        {"n": len(g["params"]), "weight_decay": g["weight_decay"], "betas": list(g["betas"]), "eps": g["eps"]}
        for g in optimizer.param_groups
    ]
    assert ours == run["groups"]
