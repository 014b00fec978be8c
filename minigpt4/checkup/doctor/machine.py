"""The doctor on the machine: versions against the pins, devices, memory and disk against what the model needs."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch

from ...common.dist_utils import choose_device
from ...common.errors import UserError
from ...common.identify import gigabytes
from ...common.paths import resolve_path
from ...common.precision import Precision, resolve_precision
from ...common.schema import Config
from ...models.llm_loading import bits_of, stored_dtype
from .files import Files
from .page import LOOK, OK, WRONG, Row

SECTION = "Machine"
SHOWN = ("torch", "transformers", "timm", "tokenizers", "safetensors", "accelerate")  # what most problems are about
ACTIVATIONS = 1.5e9  # bytes beside the weights in a chat: the cache of 2,000 tokens, one image, the CUDA context


def look_at_machine(
    config: Config, files: Files, mode: str, device_name: str | None
) -> tuple[list[Row], torch.device, bool]:
    """Rows, the device that was chosen, and whether its free memory holds the weights."""
    key = "run.device=" if mode == "train" and not device_name else "--device "
    device, row = _device(config.run.device if key.startswith("run") else device_name, key)
    rows, free = [versions(), row], _free(device)
    precision, told = _precision(config, mode, device)
    rows.append(told)
    need = bytes_needed(config, files, precision)
    if need:
        rows.append(_memory(need, *free, device, config))
    rows += [_disk(config)] if mode == "train" else []
    return rows, device, need <= free[0] or bool(config.model.device_map)


def versions() -> Row:
    """Python and the pinned packages that are installed, against the pins of this project."""
    python = f"Python {platform.python_version()}"
    try:
        pins = dict(re.findall(r"^([\w-]+)==([^\s;]+)$", "\n".join(requires("minigpt4") or []), re.M))
    except PackageNotFoundError:
        return Row(SECTION, LOOK, "versions", f"{python}; this project is not installed", "run `pip install -e .`")
    here = {name: _version(name) for name in pins}
    missing = [name for name, found in here.items() if not found]
    other = [f"{n} {here[n]} (pinned: {pins[n]})" for n in pins if here[n] and here[n].split("+")[0] != pins[n]]
    if missing or other:
        missing = [f"{name} is missing" for name in missing]
        return Row(SECTION, WRONG if missing else LOOK, "versions", f"{python}; {', '.join(missing + other)}",
                   "run `pip install -e .` in the project's folder")  # fmt: skip
    shown = ", ".join(f"{name} {here[name]}" for name in SHOWN if name in here)
    return Row(SECTION, OK, "versions", f"{python}, {shown}; all {len(pins)} pinned packages are as pinned")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _device(name: str | None, key: str) -> tuple[torch.device, Row]:
    try:
        device = choose_device(name, f"{key}{name}", f"{key}cpu")
    except UserError as error:
        return torch.device("cpu"), Row(SECTION, WRONG, "device", str(error))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda":
        gpus = ", ".join(torch.cuda.get_device_properties(i).name for i in range(count))
        return device, Row(SECTION, OK, "device", f"{device}; GPUs: {gpus}; CUDA {torch.version.cuda}")
    gpus = f"{count} GPUs not used" if count else "no GPU"
    return device, Row(SECTION, OK, "device", f"cpu, {os.cpu_count()} threads; {gpus}")


def _precision(config: Config, mode: str, device: torch.device) -> tuple[Precision | None, Row]:
    """What a training run or a chat would compute in here; None where the config's keys contradict each other."""
    try:
        stored = stored_dtype(resolve_path(config.model.llama_model))
    except (UserError, OSError):
        stored = None  # the files' own section says what is wrong with them
    try:
        precision = resolve_precision(config.model, device, config.run if mode == "train" else None, stored)
    except UserError as error:
        return None, Row(SECTION, WRONG, "precision", str(error))
    return precision, Row(SECTION, OK, "precision", str(precision))


def bytes_needed(config: Config, files: Files, precision: Precision | None) -> float:
    """Weights in memory for a chat or a training step, counted from the files' headers; 0 where they are not known."""
    model = config.model
    vision = {key: files.known[key].parameters for key in ("model.vit_ckpt", "model.q_former_model")
              if key in files.known}  # fmt: skip
    if not files.llm or not files.llm.parameters or not precision:
        return 0
    bits = bits_of(model.low_resource) or precision.llm.itemsize * 8
    vit = vision.get("model.vit_ckpt", 0) * precision.vit.itemsize
    return files.llm.parameters * bits / 8 + vit + vision.get("model.q_former_model", 0) * 4


def _free(device: torch.device) -> tuple[int, int]:
    """(free, in all) bytes of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _memory(need: float, free: int, total: int, device: torch.device, config: Config) -> Row:
    where = "GPU memory" if device.type == "cuda" else "memory"
    text = f"{gigabytes(free)} of {gigabytes(total)} {where} free; the weights take {gigabytes(need)}"
    if need + (ACTIVATIONS if need > 1e9 else 0) <= free or config.model.device_map:
        return Row(SECTION, OK, "memory", text)
    text += ": too little" if need > free else ", and little is left for the rest"
    smaller = "4bit" if config.model.low_resource else "8bit or 4bit"
    do = f"to run it here write model.low_resource: {smaller}, or model.device_map: auto, or free some"
    return Row(SECTION, LOOK, "memory", text, do)


def _disk(config: Config) -> Row:
    folder = Path(config.run.output_dir).expanduser().absolute()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    text = f"{gigabytes(free)} free for run.output_dir ({config.run.output_dir})"
    if not os.access(there, os.W_OK):
        return Row(SECTION, WRONG, "disk", f"{there} cannot be written to", "write another run.output_dir")
    if free < 1e9:
        return Row(SECTION, LOOK, "disk", text, "free some: a checkpoint with its resume file takes 50 MB and more")
    return Row(SECTION, OK, "disk", text)
