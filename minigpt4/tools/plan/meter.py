"""Counting without computing: what a run on the meta device would cost on a real one.

Modules run as they are, on tensors that have a shape and no data. `Meter` sees each operation below autograd: FLOPs,
bytes moved, bytes alive. `MetaRules` stands in for what a GPU would decide from its type or from data: autocast, the
fused attention kernel.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ...common.gpus import Work
from .allocator import CachingAllocator

aten = torch.ops.aten
LOOKUPS = {aten.embedding, aten.index, aten.index_select}  # these read the rows that they return, not the whole table


class Meter(TorchDispatchMode):
    """Counts what happens within its context.

    Args:
        resident: tensors that are there before (the weights): not counted as alive.
        shrunk: {id of a weight's storage: share of its bytes that is really stored}, for 8- and 4-bit weights.
    Attributes:
        work: every operation so far (gpus.Work).
        live, peak: bytes alive now, and at most, without `resident`.
        allocator: holds the same memory as a GPU's allocator would.
    """

    def __init__(self, resident: Iterable[Tensor], shrunk: dict[int, float] | None = None):
        super().__init__()
        self.work = Work()
        self.live = self.peak = 0
        self.allocator = CachingAllocator()
        self._known: dict[int, object] = {_storage(t): None for t in resident}
        self._shrunk = shrunk or {}
        self._made: dict[tuple, tuple] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [*_leaves(args), *_leaves(kwargs.values())]
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_meta]
        key = (func, *map(_look, leaves), *kwargs)
        known = self._made.get(key)
        if known:  # the layers are alike: what came of this once comes of it again, and is made faster
            shapes, flops = known
            outputs = [torch.empty_strided(*shape, dtype=dtype, device="meta") for *shape, dtype in shapes]
            out = outputs[0] if len(outputs) == 1 else tuple(outputs)
        else:
            with torch._C.DisableTorchFunction():  # PyTorch's Python kernels for meta are none of MetaRules' business
                out = func(*args, **kwargs)
            outputs = [leaf for leaf in _leaves([out]) if isinstance(leaf, Tensor) and leaf.is_meta]
            read = {_storage(t) for t in inputs}
            if not outputs or (not func._schema.is_mutable and all(_storage(t) in read for t in outputs)):
                return out  # a view
            packet = func._overloadpacket
            flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
            if _can_be_made_again(func, out, outputs, read):
                self._made[key] = [(t.shape, t.stride(), t.dtype) for t in outputs], flops
        for tensor in outputs:
            self._see(tensor)
        moved = sum(map(self._bytes, outputs))
        moved += moved if func._overloadpacket in LOOKUPS else sum(map(self._bytes, inputs))
        size = max((t.itemsize for t in inputs if t.is_floating_point()), default=1)
        self.work[flops, size, moved] += 1
        return out

    def _bytes(self, tensor: Tensor) -> int:
        """What is really read or written: an expanded tensor is no larger than its storage."""
        share = self._shrunk.get(_storage(tensor), 1)
        return int(share * min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()))

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        self.allocator.allocate(key, size)

        def gone(_):
            self.live -= size
            del self._known[key]
            self.allocator.release(key)

        self._known[key] = weakref.ref(storage, gone)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _leaves(values: Iterable) -> Iterator:
    """The arguments of an operation, those in lists too."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _look(leaf) -> object:
    """What an operation sees of an argument, so that it can be compared."""
    return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _can_be_made_again(func, out, outputs: list[Tensor], read: set[int]) -> bool:
    """Only new tensors, each with a storage of its own that it fills."""
    plain = (Tensor,) if len(outputs) == 1 else (tuple,)
    return (
        not func._schema.is_mutable
        and isinstance(out, plain)
        and (isinstance(out, Tensor) or len(out) == len(outputs))
        and all(_storage(t) not in read for t in outputs)
        and all(t.untyped_storage().nbytes() == t.numel() * t.itemsize for t in outputs)
    )


class MetaRules(TorchFunctionMode):
    """What a device decides, decided for meta tensors.

    - Autocast, which PyTorch refuses on meta: matrix products in `autocast`, sums and norms in fp32.
      Source: the lists of torch/csrc/autograd (autocast_mode.h), the part that these models use.
    - Fused attention keeps no scores: the memory-efficient kernel, the one that takes a padding mask.
    - Linear layers whose weight is in `int8` keep their input for backward, frozen or not, as bitsandbytes' do.
    """

    LOWER = frozenset(
        (F.linear, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm,
         F.scaled_dot_product_attention)
    )  # fmt: skip
    RAISED = frozenset((F.layer_norm, F.softmax, F.cross_entropy, Tensor.pow, torch.pow, torch.rsqrt))

    def __init__(self, autocast: torch.dtype | None, int8: frozenset[int] = frozenset()):
        super().__init__()
        self.autocast, self.int8 = autocast, int8

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:
            return False
        if self.autocast and (func in self.LOWER or func in self.RAISED):
            dtype = self.autocast if func in self.LOWER else torch.float32
            args = [_cast(a, dtype) for a in args]
            kwargs = {k: _cast(v, dtype) for k, v in kwargs.items()}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _fused_attention(*args, **kwargs)
        if self.int8 and func is F.linear and len(args) > 1 and id(args[1]) in self.int8:
            return _KeepsInput.apply(*args)
        return func(*args, **kwargs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this, `torch.autocast` sets `autocast`, and the other rules hold."""
        rules = self

        class Autocast:
            def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **_):
                self.wanted = dtype if enabled else None

            def __enter__(self):
                self.before, rules.autocast = rules.autocast, self.wanted

            def __exit__(self, *_):
                rules.autocast = self.before

        with mock.patch.object(torch, "autocast", Autocast), self:
            yield


def _cast(value, dtype: torch.dtype):
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """query (B, H, S, D), key and value (B, H or fewer, T, D) -> (B, H, S, D)."""
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


class _KeepsInput(torch.autograd.Function):
    """A frozen linear layer that keeps its input all the same. Source: bitsandbytes' MatMul8bitLt.forward."""

    @staticmethod
    def forward(ctx, x, weight, bias=None):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[1], None, None
