"""The LLM's matrices in 8 or 4 bit (`model.low_resource`), made one after the other as the weights are read."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from ..common.errors import ConfigError

Quantize = Callable[[nn.Linear], nn.Module]


def bits_of(low_resource: bool | str) -> int | None:
    """model.low_resource -> bits of a weight: True and `8bit` 8, `4bit` 4, False None."""
    return {"8bit": 8, "4bit": 4}.get(low_resource, 8 if low_resource is True else None)


def quantizer(bits: int, device: torch.device) -> Quantize:
    """What turns a Linear (its weight read, in the dtype the LLM computes in) into one of `bits` on `device`.

    8 bit on CPU is torchao's: weights int8, one scale a row. Everything else is bitsandbytes': LLM.int8() on CUDA, NF4
    with a scale for each 64 weights on both. Measured on CPU with SmolLM2-135M, one thread: fp32 17 tokens/s, torchao's
    int8 13-15, its int4 5 (of 8 bits in memory), NF4 14-21.
    Raises:
        ConfigError: the library that does it is not installed.
    """
    if bits == 8 and device.type == "cpu":
        return _torchao_int8
    check_bitsandbytes(bits)
    return _bitsandbytes_int8(device) if bits == 8 else _bitsandbytes_nf4(device)


def check_bitsandbytes(bits: int) -> None:
    """Raises ConfigError when bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.low_resource: {bits} bit on this device is done by bitsandbytes, which is not installed: "
            "`pip install -e .[gpu]`, or write low_resource: False"
        )
    # Without the optional package `kernels` each start would tell of a faster routine that is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _torchao_int8(linear: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(linear, Int8WeightOnlyConfig())
    return linear


def _bitsandbytes_int8(device: torch.device) -> Quantize:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    def quantize(linear: nn.Linear) -> nn.Module:
        new = Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, device="meta"
        )
        new.weight = Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        new.bias = linear.bias
        return new.to(device)  # quantizes

    return quantize


def allow_repacking(llm: nn.Module) -> None:
    """For a model that only answers. On CPU the first forward without gradients then repacks 4-bit weights for good,
    into a form that is 2-3 times as fast and has no backward: training would go on without an error, and without the
    gradient through these layers."""
    for module in llm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = torch.cpu._is_avx512_bf16_supported()


def _bitsandbytes_nf4(device: torch.device) -> Quantize:
    from bitsandbytes.nn import Linear4bit, Params4bit

    def quantize(linear: nn.Linear) -> nn.Module:
        new = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        new.support_avx512bf16_for_cpu = False  # see `allow_repacking`
        new.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = linear.bias
        return new.to(device)  # quantizes

    return quantize
