"""Optimizers, parameter groups and learning-rate schedules."""

import inspect
import math

import torch
from torch import nn

from .errors import ConfigError
from .registry import LR_SCHEDULES, OPTIMIZERS
from .schema import RunConfig

OPTIMIZERS.register("adamw")(torch.optim.AdamW)
OPTIMIZERS.register("sgd")(torch.optim.SGD)


def create_optimizer(run: RunConfig, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """`run.optimizer` over what is trained in `model`; AdamW is fused on CUDA.
    Raises ConfigError: it takes no such `run.optimizer_kwargs`."""
    optimizer, kwargs = OPTIMIZERS.get(run.optimizer), dict(run.optimizer_kwargs)
    if device.type == "cuda" and "fused" in inspect.signature(optimizer).parameters:
        kwargs.setdefault("fused", True)
    try:
        return optimizer(parameter_groups(model, run.weight_decay), lr=run.init_lr, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"run.optimizer_kwargs: {run.optimizer} does not take {kwargs}: {error}") from None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters in two groups, with and without weight decay.

    No decay where ndim < 2 or the name contains "bias", "ln" or "bn". Source: the original's optimizer set-up
    (inherited from LAVIS).
    """
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
        (no_decay if bare else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


@LR_SCHEDULES.register("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(
    step: int, *, total_steps: int, init_lr: float, min_lr: float, warmup_lr: float, warmup_steps: int
) -> float:
    """Learning rate of optimizer step `step` (from 0).

    Linear from `warmup_lr` to `init_lr` in `warmup_steps`, then the cosine from `init_lr` to `min_lr` as it stands at
    `step` of `total_steps` (the warm-up does not shift it). Source: the original, except that it counted the warm-up
    within the epoch, so that one longer than an epoch began again; ours counts steps (docs/decisions.md).
    """
    if step < warmup_steps:
        return warmup_lr + (init_lr - warmup_lr) * step / warmup_steps
    return min_lr + (init_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))


@LR_SCHEDULES.register("constant_lr")
def constant_lr(step: int, *, init_lr: float, warmup_lr: float, warmup_steps: int, **_) -> float:
    """`init_lr` after a linear warm-up from `warmup_lr`."""
    return warmup_lr + (init_lr - warmup_lr) * step / warmup_steps if step < warmup_steps else init_lr
