"""Modules are built without memory; the weight files bring it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import CheckpointError

# What libraries fill new parameters with: functions of torch.nn.init, and methods of tensors
FILLING = {
    "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_",
    "xavier_normal_", "xavier_uniform_", "zeros_", "add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "zero_",
}  # fmt: skip


class SkipInitialization(TorchFunctionMode):
    """Leave out the initialization of parameters on the meta device. It changes nothing there, but PyTorch runs it as
    Python code, milliseconds for each parameter."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in FILLING and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


@contextmanager
def empty_weights(when: bool = True) -> Iterator[None]:
    """Modules built inside get their parameters on the meta device: no memory, no random numbers drawn. Buffers are
    real, because files do not hold all of them. `load_exact` brings the parameters; `check_loaded` looks for gaps."""
    from accelerate import init_empty_weights

    if not when:
        yield
        return
    with init_empty_weights(include_buffers=False), SkipInitialization():
        yield


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
