"""Resuming from a checkpoint whose config may differ: what the config says counts, the rest is the checkpoint's."""

from pathlib import Path

from torch.optim import Optimizer

from ..common.errors import CheckpointError


def load_optimizer(optimizer: Optimizer, state: dict, checkpoint: Path) -> None:
    """Load the moments of a checkpoint's optimizer state. What the config decides (weight decay, ...) stays as it is.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: its optimizer state is of another model: {error}") from None
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def validated_on(config: dict) -> tuple:
    """Return the part of a plain config that decides which samples validation reads."""
    datasets = {name: dataset.get("valid_info") for name, dataset in config.get("datasets", {}).items()}
    return {n: info for n, info in datasets.items() if info}, config.get("run", {}).get("valid_samples")


def changes(before: dict, now: dict, prefix: str = "") -> list[str]:
    """Return a line `a.b: old -> new` for every key in which two nested dictionaries differ."""
    lines = []
    for key in [*before, *(k for k in now if k not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{key}.")
        elif isinstance(old, dict) or isinstance(new, dict):
            lines.append(f"{prefix}{key}: {'removed' if isinstance(old, dict) else 'added'}")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines
