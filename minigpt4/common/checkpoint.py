"""Weight files: read safely, loaded strictly, written atomically.

A training checkpoint is two files: `checkpoint_N.pth`, the original's format with the trained weights only, which any
MiniGPT-4 demo opens; and `checkpoint_N.resume.pt`, what resuming needs (optimizer, RNG, loader positions).
"""

import re
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .download import local_path
from .errors import CheckpointError, some
from .identify import DOWNLOAD_AGAIN, FileFacts, identify, load_torch
from .paths import whole_file

# Buffers the original saved beside the trained weights; they hold nothing that is learned.
HARMLESS = re.compile(r"(position_ids|rotary_emb\.inv_freq)$")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pth/.pt/.bin or .safetensors file, memory-mapped, unwrapped from `model` or `state_dict`. A URL
    is fetched into the cache first. Pickles are read with `weights_only=True`: no code of the file ever runs.
    Raises CheckpointError: no such file, not a weight file, damaged."""
    path = Path(local_path(str(path)))
    tensors = weight_file(path).tensors
    return load_file(path) if any(tensor.is_meta for tensor in tensors.values()) else tensors


def weight_file(path: Path) -> FileFacts:
    """The header of a weight file; `value(name)` of the result reads one tensor. Raises CheckpointError as above."""
    found = identify(path)
    if found.kind in DOWNLOAD_AGAIN:
        raise CheckpointError(f"{path} is {found.describe()}; {DOWNLOAD_AGAIN[found.kind]}")
    if not found.tensors:
        raise CheckpointError(f"{path}: holds no state dict (names and tensors)")
    return found


def finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether no number is NaN or infinite, or would be in `dtype`. Needs no memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # NaN if one is
    most = torch.finfo(dtype if dtype and dtype.is_floating_point else tensor.dtype).max
    return bool(-most <= low) and bool(high <= most)


@torch.no_grad()
def load_exact(
    targets: dict[str, Tensor], state: dict[str, Tensor], path: str | Path, *, required: set[str] | None = None,
    ignore: Callable[[str], Any] = HARMLESS.search, device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Copy `state` into `targets` (name -> parameter or buffer), in the dtype of each, or say what does not fit. A
    target on the meta device (see `empty_weights`) becomes a tensor of its own on `device`.

    Args:
        required: names that the file must hold (default: all of `targets`).
        ignore: names of the file for which this is truthy may be left over.
    Raises:
        CheckpointError: names what is missing, unexpected, of another shape, NaN or infinite; nothing is copied.
    """
    used = {name: tensor for name, tensor in state.items() if name in targets}
    shapes = {n: (tuple(t.shape), tuple(targets[n].shape)) for n, t in sorted(used.items())}
    wrong = {
        "missing": sorted((set(targets) if required is None else required) - set(state)),
        "unexpected": sorted(name for name in state if name not in targets and not ignore(name)),
        "other shape": [f"{n} is {a} in the file and {b} in the model" for n, (a, b) in shapes.items() if a != b],
    }
    if any(wrong.values()):
        found = identify(local_path(str(path)))
        what = f"; it is {found.describe()}" if found.tensors else ""
        lines = "".join(f"\n  {what}: {some(names, 6)}" for what, names in wrong.items() if names)
        raise CheckpointError(f"{path} does not fit this model{what}{lines}")
    for name, tensor in used.items() if torch.device(device).type != "meta" else ():
        if not finite(tensor, targets[name].dtype):
            why = f"numbers beyond {targets[name].dtype}" if finite(tensor) else "NaN or infinity"
            raise CheckpointError(f"{path} cannot be used: {name} holds {why}; it is damaged, or its training failed")
    for name, tensor in used.items():
        target = targets[name]
        if not target.is_meta:
            target.copy_(tensor)
            continue
        new = torch.empty_like(target, device=device).copy_(tensor)
        if isinstance(target, nn.Parameter):
            new = nn.Parameter(new, target.requires_grad)
        torch.utils.swap_tensors(target, new)


def empty_weights(when: bool = True) -> AbstractContextManager:
    """Modules built inside get their parameters on the meta device: no memory, no random numbers drawn. Buffers are
    real, because files do not hold all of them. `load_exact` brings the parameters; `check_loaded` looks for gaps."""
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False) if when else nullcontext()


def check_loaded(model: nn.Module) -> None:
    """Make what only the parameters' device decides (masks of timm's Swin), then look for tensors without memory.
    Raises CheckpointError: names them; such a model would compute nonsense, or stop somewhere within a step."""
    for module in model.modules():
        if any(b.is_meta for b in module.buffers(recurse=False)) and hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"no file of the config brings {', '.join(empty[:5])} ({len(empty)} in all); write the file with them "
            "as model.vit_ckpt, q_former_model, llama_model or ckpt"
        )


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: the live tensors, not copies."""
    return module.state_dict(keep_vars=True)


def atomic_save(data: Any, path: Path, save: Callable[[Any, str], None] = torch.save) -> None:
    """Write `path` whole or not at all with `save(data, path)`, see `whole_file`.
    Raises CheckpointError: the disk is full, the folder read-only, ...; what stood at `path` is untouched."""
    try:
        with whole_file(Path(path)) as part:
            save(data, str(part))
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk: torch's writer raises RuntimeError
        raise CheckpointError(f"{path}: cannot be written: {error}; earlier checkpoints are untouched") from error


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Trained weights alone, as safetensors."""
    atomic_save({k: v.detach().cpu().contiguous() for k, v in state.items()}, path, save_file)


def resume_path(checkpoint: Path) -> Path:
    """checkpoint_3.pth -> checkpoint_3.resume.pt"""
    return checkpoint.with_name(checkpoint.stem + ".resume.pt")


def save_checkpoint(checkpoint: Path, model: dict[str, Tensor], facts: dict, resume: dict) -> None:
    """Write `checkpoint_N.pth` (the end of epoch N, from 0) or `checkpoint_step_S.pth` (within an epoch), and what
    resuming from it needs, for `read_resume`. `model` has the published names; `facts` (`epoch`, `step`, `config`) are
    stored beside the weights, as the original did."""
    save_resume(checkpoint, facts["step"], resume)  # first: a checkpoint_N.pth that is there has its other half
    save_model(checkpoint, model, facts)


def save_resume(checkpoint: Path, step: int, resume: dict) -> None:
    atomic_save({**resume, "step": step}, resume_path(checkpoint))


def save_model(checkpoint: Path, model: dict[str, Tensor], facts: dict) -> None:
    atomic_save({"model": {name: tensor.detach().cpu() for name, tensor in model.items()}, **facts}, checkpoint)


def read_resume(checkpoint: Path) -> tuple[dict[str, Tensor], dict]:
    """The trained weights and the resume state of a checkpoint.
    Raises CheckpointError: one of the two files is missing or damaged, or they are of different steps."""
    sidecar = resume_path(checkpoint)
    for file in (checkpoint, sidecar):
        # torch's files are zip archives; their CRCs find a flipped byte that torch.load would not.
        try:
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
        except Exception as error:  # a flipped byte in a header raises anything from NotImplementedError to zlib.error
            raise CheckpointError(f"{file}: missing or damaged: {error}") from None
        if bad:
            raise CheckpointError(f"{file}: damaged: the checksum of {bad} is wrong")
    try:
        resume = torch.load(sidecar, map_location="cpu", weights_only=True)
        steps = resume["step"], load_torch(checkpoint)["step"]
    except Exception as error:  # torch.load raises many kinds, some with advice to run the file's code
        code = "Weights only load failed" in str(error)
        reason = "it holds more than tensors and plain values" if code else error
        raise CheckpointError(f"{sidecar}: cannot be read: {reason}") from None
    if steps[0] != steps[1]:
        raise CheckpointError(f"{sidecar} is of step {steps[0]}, but {checkpoint.name} of step {steps[1]}")
    return read_state(checkpoint), resume


def step_of(path: Path) -> float:
    """The optimizer step of a checkpoint or its sidecar, from inside the file: times do not survive a copy. A file that
    cannot be read counts as the newest, so that it is looked at, and complained about, before an older one is used."""
    try:
        return load_torch(path)["step"]
    except Exception:  # torch.load raises many kinds
        return float("inf")


def find_latest(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each newer one that is damaged."""
    complaints: list[str] = []
    resumable = [p for p in output_dir.glob("checkpoint_*.pth") if p.stem != "checkpoint_best"]
    for checkpoint in sorted(resumable, key=step_of, reverse=True):
        try:
            read_resume(checkpoint)
            return checkpoint, complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, complaints


def prune_checkpoints(output_dir: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints within epochs, sidecars nobody will go on from, and what a
    killed run left half-written."""
    for old in sorted(output_dir.glob("checkpoint_step_*.pth"), key=step_of)[:-keep_last]:
        old.unlink()
        resume_path(old).unlink(missing_ok=True)
    sidecars = sorted(output_dir.glob("checkpoint_*.resume.pt"), key=step_of)
    for old in [*sidecars[: -(keep_last + 1)], *output_dir.glob(".checkpoint_*.tmp")]:
        old.unlink()
