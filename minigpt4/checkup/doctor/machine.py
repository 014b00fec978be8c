"""Checks of the machine: package versions, device, precision, memory, disk."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch

from ...common.identify import gigabytes
from ...common.packages import installed_version, wanted_versions
from .context import LOOK, OK, WRONG, Context, Finding

SHOWN = ("torch", "transformers", "timm", "tokenizers", "safetensors", "accelerate")  # what most problems are about
ACTIVATIONS = 1.5e9  # bytes beside the weights in a chat: the cache of 2,000 tokens, one image, the CUDA context


def check_versions(context: Context) -> Finding:
    """The packages that this project needs are installed, in the versions that were tested."""
    python = f"Python {platform.python_version()}"
    try:
        wanted = wanted_versions()
    except PackageNotFoundError:
        return Finding(LOOK, f"{python}; this project is not installed", "run `pip install -e .`")
    here = {name: installed_version(name) for name in wanted}
    missing = [f"{name} is missing" for name in wanted if not here[name]]
    other = [f"{name} {here[name]} (tested: {want.specifier})" for name, want in wanted.items()
             if here[name] and not want.specifier.contains(here[name], prereleases=True)]  # fmt: skip
    if missing or other:
        again = "run `pip install -c requirements.lock -e .` in the project's folder"
        return Finding(WRONG if missing else LOOK, f"{python}; {', '.join(missing + other)}", again)
    shown = ", ".join(f"{name} {here[name]}" for name in SHOWN if name in here)
    return Finding(OK, f"{python}, {shown}; all {len(wanted)} packages have the tested versions")


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


def check_memory(context: Context) -> Finding:
    """The weights fit into the free memory of the device."""
    (need, free, total), model = context.memory, context.config.model
    where = "GPU memory" if context.device.type == "cuda" else "memory"
    text = f"{gigabytes(free)} of {gigabytes(total)} {where} free; the weights take {gigabytes(need)}"
    if need + (ACTIVATIONS if need > 1e9 else 0) <= free or model.device_map:
        return Finding(OK, text)
    text += ": too little" if need > free else ", and little is left for the rest"
    smaller = "4bit" if model.low_resource else "8bit or 4bit"
    do = f"to run it here write model.low_resource: {smaller}, or model.device_map: auto, or free some"
    return Finding(LOOK, text, do)


def check_disk(context: Context) -> Finding | None:
    """A training run can write its checkpoints to run.output_dir."""
    if context.mode != "train":
        return None
    folder = Path(context.config.run.output_dir).expanduser().absolute()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(there, os.W_OK):
        return Finding(WRONG, f"{there} cannot be written to", "write another run.output_dir")
    free = shutil.disk_usage(there).free
    text = f"{gigabytes(free)} free for run.output_dir ({context.config.run.output_dir})"
    if free < 1e9:
        return Finding(LOOK, text, "free some: a checkpoint with its resume file takes 50 MB and more")
    return Finding(OK, text)
