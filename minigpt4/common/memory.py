"""Modules are built without memory; the weight files bring it."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from .errors import CheckpointError


def empty_weights(when: bool = True) -> AbstractContextManager:
    """Modules built inside get their parameters on the meta device: no memory, no random numbers drawn. Buffers are
    real, because files do not hold all of them. `load_exact` brings the parameters; `check_loaded` looks for gaps."""
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False) if when else nullcontext()


def check_loaded(model: nn.Module) -> None:
    """Make what only the parameters' device decides (masks of timm's Swin), then look for tensors without memory.

    Raises:
        CheckpointError: names them; such a model would compute nonsense, or stop somewhere within a step.
    """
    for module in model.modules():
        if any(b.is_meta for b in module.buffers(recurse=False)) and hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"no file of the config brings {', '.join(empty[:5])} ({len(empty)} in all); write the file with them "
            "as model.vit_ckpt, q_former_model, llama_model or ckpt"
        )
