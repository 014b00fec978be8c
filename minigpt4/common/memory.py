"""Weights are held once: modules are built without memory, files are mapped, and pages that were read are let go."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from .errors import CheckpointError


@contextmanager
def empty_weights(when: bool = True) -> Iterator[None]:
    """Modules built inside get their parameters on the meta device: no memory, no random numbers drawn. Buffers are
    real, because files do not hold all of them. `load_exact` brings the parameters; `check_loaded` looks for gaps."""
    if not when:
        yield
        return
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
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
    empty += [
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    ]
    if empty:
        raise CheckpointError(f"no file of the config brings {', '.join(empty[:5])} ({len(empty)} in all)")


def give_back_freed() -> None:
    """Return freed memory to the system. glibc keeps what lies between tensors that live on: while matrices are
    quantized one by one, up to the size of the full ones."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


class MappedFiles:
    """Where files are mapped into this process, as `read_state` and transformers do with weights.

    A page that was read counts as the process's memory as long as the file is mapped, beside the copy made of it:
    twice the weights, or three times when a float32 file becomes bf16. `let_go` gives such pages back; read again,
    they come from the file again. Only on Linux; elsewhere nothing is given back.
    """

    def __init__(self):
        self._ranges = []
        maps = Path("/proc/self/maps")
        for line in maps.read_text().splitlines() if maps.exists() else ():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/") and fields[4] != "0":
                start, end = fields[0].split("-")
                self._ranges.append((int(start, 16), int(end, 16)))

    def hold(self, tensor: Tensor) -> bool:
        """Whether the tensor's values are a file's own."""
        if tensor.device.type != "cpu" or not tensor.nbytes:
            return False
        start = tensor.data_ptr()
        return any(low <= start and start + tensor.nbytes <= high for low, high in self._ranges)

    def let_go(self, tensor: Tensor) -> None:
        """Give back the pages of a tensor that has been copied and was never written to. Whole pages only, and only
        those of a file: elsewhere the values would be lost."""
        if not (tensor.is_contiguous() and self.hold(tensor)):
            return
        page = mmap.PAGESIZE
        start = -(-tensor.data_ptr() // page) * page
        size = (tensor.data_ptr() + tensor.nbytes) // page * page - start
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
