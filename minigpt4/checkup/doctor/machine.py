"""Checks of the machine: package versions, device, precision, memory."""

import os
import platform
from importlib.metadata import version

import psutil
import torch

from ...common.identify import gigabytes
from ...models.llm_loading import bits_of
from .context import LOOK, OK, WEIGHTS, Context, Finding

SHOWN = ("torch", "transformers", "timm", "tokenizers", "safetensors", "accelerate")  # what most problems are about
ACTIVATIONS = 1.5e9  # bytes beside the weights in a chat: the cache of 2,000 tokens, one image, the CUDA context


def check_versions(context: Context) -> Finding:
    """Shows the versions of Python and of the packages that most problems are about."""
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    return Finding(OK, f"Python {platform.python_version()}, {shown}")


def check_device(context: Context) -> Finding:
    """The device that the config or --device names is on this machine."""
    device, count = context.device, torch.cuda.device_count()
    if device.type == "cuda":
        gpus = ", ".join(torch.cuda.get_device_properties(i).name for i in range(count))
        return Finding(OK, f"{device}; GPUs: {gpus}; CUDA {torch.version.cuda}")
    return Finding(OK, f"cpu, {os.cpu_count()} threads; {f'{count} GPUs not used' if count else 'no GPU'}")


def check_precision(context: Context) -> Finding:
    """The keys of the config that set dtypes agree; shows the dtype that each part computes in."""
    return Finding(OK, str(context.precision))


def check_memory(context: Context) -> Finding | None:
    """The weights fit into the free memory of the device."""
    model, precision, device = context.config.model, context.precision, context.device
    llm = sum(file.parameters for file in context.llm_files)
    if not llm:  # a GGUF file
        return None
    vit, qformer = (file.parameters if (file := context.files.get(key)) else 0 for key in WEIGHTS[:2])
    need = llm * (bits_of(model.low_resource) or 8 * precision.llm.itemsize) / 8
    need += vit * precision.vit.itemsize + qformer * 4
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    where = "GPU memory" if device.type == "cuda" else "memory"
    text = f"{gigabytes(free)} of {gigabytes(total)} {where} free; the weights take {gigabytes(need)}"
    if need + (ACTIVATIONS if need > 1e9 else 0) <= free or model.device_map:
        return Finding(OK, text)
    text += ": too little" if need > free else ", and little is left for the rest"
    smaller = "4bit" if model.low_resource else "8bit or 4bit"
    do = f"to run it here write model.low_resource: {smaller}, or model.device_map: auto, or free some"
    return Finding(LOOK, text, do)
