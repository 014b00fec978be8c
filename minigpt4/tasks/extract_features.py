"""`minigpt4 features --cfg-path X`: run the frozen vision tower once over the pictures of a config.

For each dataset with `build_info.features` (and `valid_info.features`) it writes that file; see datasets/features.py.
A file that is there and made of the same is kept; one that was begun is continued. A picture that cannot be read
has zeros there, and is a bad sample in training, as it would be without features.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..common.checkpoint import load_exact, named_tensors, read_state
from ..common.config import load_config
from ..common.dist_utils import choose_device
from ..common.errors import ConfigError, DataError, UserError, some
from ..common.paths import resolve_path
from ..common.precision import resolve_precision
from ..common.schema import Config, ModelConfig
from ..datasets.decoding import read_image_file
from ..datasets.features import differing, facts_file, made_from, read_facts, short_name
from ..datasets.image_text import ImageTextSource
from ..datasets.stream import seed_of
from ..models.eva_vit import create_vit, encode_tokens, published_vit_state
from ..tasks.image_text_pretrain import add_config_key_to_errors, build_processor, build_source

NOTE_EVERY = 64  # pictures after which it is noted how far the file is
CROPS = 8  # of each training picture, unless --crops says otherwise or the file that is there has others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the training config")
    parser.add_argument("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these of the config (default: all)")
    parser.add_argument(
        "--crops", type=int, metavar="N", help="crops of each training picture, the first of them the whole picture "
        f"(default: {CROPS}, or as many as the file that is there has); in validation there is one",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=8, help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")


@dataclass(frozen=True)
class Wanted:
    """A file that the config names, with the key that names it, and what it should be made of."""

    key: str
    file: Path
    facts: dict
    crops: "Crops"


def run(args: argparse.Namespace) -> int:
    for flag, value in (("--batch", args.batch), ("--crops", args.crops)):
        if value is not None and value < 1:
            raise UserError(f"{flag}: {value} should be at least 1")
    config = load_config(args.cfg_path, args.options, mode="show")
    device = choose_device(args.device, f"--device {args.device}")
    if not config.model.freeze_vit or not config.model.vit_ckpt:
        raise ConfigError(f"{config.path}: features are of a frozen ViT: set model.freeze_vit and model.vit_ckpt")
    vit = None
    for wanted in wanted_files(config, args.datasets, args.crops):
        if finished(wanted):
            print(f"{wanted.key}: {wanted.file} is there, made of these pictures by this ViT (no other weights count); "
                  "delete it to make it anew")  # fmt: skip
            continue
        vit = vit or load_vit(config.model, device)
        vision = partial(encode, vit, resolve_precision(config.model, device).vit, device)
        unreadable = write_features(vision, wanted, args.batch, config.run.num_workers)
        size, count = wanted.file.stat().st_size / 1e6, f"{len(wanted.crops)} pictures x {wanted.crops.crops}"
        print(f"{wanted.key}: {wanted.file}, {count}, {size:,.0f} MB")
        if unreadable:
            told = some(f"{name} ({why})" for name, why in unreadable.items())
            print(f"  {len(unreadable)} cannot be read, bad samples in training: {told}. Delete the file to try again")
    return 0


def wanted_files(config: Config, names: Sequence[str] | None = None, crops: int | None = None) -> list[Wanted]:
    """What the datasets of the config name.

    Args:
        names: the datasets to look at; None: all.
        crops: of each training picture; None: as many as the file has, else CROPS.
    Raises:
        ConfigError: nothing; or one file for two lists; or for what is no list.
        DataError: a list cannot be read.
    """
    found: dict[Path, Wanted] = {}
    if unknown := [name for name in names or () if name not in config.datasets]:
        raise ConfigError(f"--datasets {unknown[0]}: the config has {', '.join(config.datasets)}")
    for name, dataset in config.datasets.items():
        for part, info in dataset.infos():
            if not info.features or (names and name not in names):
                continue
            key, file = f"datasets.{name}.{part}.features", Path(resolve_path(info.features))
            with add_config_key_to_errors(f"datasets.{name}.{part}.storage"):
                there = dataclasses.replace(dataset, build_info=info)
                source = build_source(name, there, "train", config.model)
            if not isinstance(source, ImageTextSource):
                raise ConfigError(f"{key}: is for lists of pictures, not for {dataset.builder or name}; leave it out")
            count = 1 if part == "valid_info" else crops or _crops_there(file) or CROPS
            with add_config_key_to_errors(key):
                facts = {**made_from(config.model, dataset.vis_processor, source.pairs), "crops": count}
            if file in found and (other := differing(found[file].facts, facts)):
                raise ConfigError(
                    f"{key}: {file} is also {found[file].key}, of other {', '.join(other)}; write a file of its own"
                )
            whole = build_processor(dataset.vis_processor.eval) if dataset.vis_processor.eval else None
            pictures = Crops(source, whole, count, config.model.image_size, config.run.seed)
            found.setdefault(file, Wanted(key, file, facts, pictures))
    if not found:
        raise ConfigError(f"{config.path}: no dataset names build_info.features; write the .npy file to be made")
    return list(found.values())


def _crops_there(file: Path) -> int | None:
    """Crops of a picture in the file that is there; None: there is none."""
    try:
        return read_facts(facts_file(file)).get("crops")
    except (OSError, ValueError):
        return None


def load_vit(config: ModelConfig, device: torch.device) -> torch.nn.Module:
    """The vision tower alone; fp32 weights, laid out as convolutions are fastest."""
    vit = create_vit(config.vit_model, config.image_size, **config.vit_kwargs)
    state = published_vit_state(read_state(config.vit_ckpt), vit)
    load_exact(named_tensors(vit), state, config.vit_ckpt)
    return vit.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


class Crops(Dataset):
    """Picture -> crops (crops, 3, H, W): the whole one, if `whole` is a processor, then drawn ones, seeded; and why
    there are none, or an empty text. Of a picture that cannot be read they are zeros."""

    def __init__(self, source: ImageTextSource, whole: Callable | None, crops: int, image_size: int, seed: int):
        self.source, self.whole, self.crops, self.image_size, self.seed = source, whole, crops, image_size, seed

    def __len__(self) -> int:
        return len(self.source.pairs)

    def name(self, index: int) -> str:
        return short_name(self.source.pairs[index][0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        try:
            image = read_image_file(self.source.pairs[index][0])
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of(self.seed, index))
                first = [self.whole(image)] if self.whole else []
                drawn = [self.source.vis_processor(image) for _ in range(self.crops - len(first))]
                return torch.stack([*first, *drawn]), ""
        except Exception as error:  # whatever a decoder raises
            return torch.zeros(self.crops, 3, self.image_size, self.image_size), f"{type(error).__name__}: {error}"


def finished(wanted: Wanted) -> bool:
    try:
        return wanted.file.exists() and not differing(read_facts(facts_file(wanted.file)), wanted.facts)
    except (OSError, ValueError):
        return False


@torch.inference_mode()
def encode(vit: torch.nn.Module, dtype: torch.dtype, device: torch.device, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> tokens (B, N, D_vit), on the CPU; in `dtype`, as the model itself would."""
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return encode_tokens(vit, images).float().cpu()


def write_features(
    encode: Callable[[torch.Tensor], torch.Tensor], wanted: Wanted, batch: int, num_workers: int
) -> dict[str, str]:
    """Into X.part.npy, with the number of pictures done in X.part.json; renamed to X.npy when it is whole.

    Returns:
        picture -> why, of those that cannot be read.
    Raises:
        DataError: the disk has no room, or none of the first pictures can be read.
    """
    file, facts, crops = wanted.file, wanted.facts, wanted.crops
    part, state = file.with_suffix(".part.npy"), file.with_suffix(".part.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    done, unreadable, table = begun(wanted, part, state)
    begun_at = done
    loader = DataLoader(Subset(crops, range(done, len(crops))), batch_size=batch, num_workers=num_workers)
    started = told = time.monotonic()
    for images, whys in tqdm(loader, desc=file.stem, unit="batch", dynamic_ncols=True, disable=None):
        tokens = encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, crops, N, D_vit)
        if table is None:
            shape = (len(crops), *tokens.shape[1:])
            table = open_table(wanted, part, mode="w+", dtype=np.float16, shape=shape)
        if told == started:  # the first batch: now size and time are known
            told, left = time.monotonic(), len(crops) - done
            seconds = (told - started) / len(tokens) * left
            print(f"{wanted.key}: {left:,} pictures x {crops.crops} crops, about {duration(seconds)} and "
                  f"{table.nbytes / 1e6:,.0f} MB on the disk", flush=True)  # fmt: skip
        for row, (values, why) in enumerate(zip(tokens.numpy(), whys, strict=True), start=done):
            table[row] = 0 if why else values
            if why:
                unreadable[crops.name(row)] = why
        done += len(tokens)
        if len(unreadable) == done >= min(NOTE_EVERY, len(crops)):
            where, why = next(iter(unreadable.items()))
            raise DataError(f"{wanted.key}: none of the first {done} pictures can be read, e.g. {where}: {why}")
        if done % NOTE_EVERY < batch:
            table.flush()
            state.write_text(json.dumps({"facts": facts, "done": done, "unreadable": unreadable}), encoding="utf-8")
        if not sys.stderr.isatty() and time.monotonic() - told > 30:
            told = time.monotonic()
            left = (told - started) / (done - begun_at) * (len(crops) - done)
            print(f"  {file.stem}: {done} of {len(crops)} pictures, {duration(left)} left", flush=True)
    table.flush()
    facts_file(file).unlink(missing_ok=True)  # between the two names stands no pair that does not belong together
    os.replace(part, file)
    facts_file(file).write_text(json.dumps({**facts, "unreadable": unreadable}, indent=1), encoding="utf-8")
    state.unlink(missing_ok=True)
    return unreadable


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def begun(wanted: Wanted, part: Path, state: Path) -> tuple[int, dict[str, str], np.ndarray | None]:
    """(pictures done, those of them that cannot be read, table) of a file that was begun of the same. Else nothing of
    it is left: beside a new table, an old state would count pictures as done."""
    try:
        noted = read_facts(state)
        if noted["facts"] == wanted.facts:
            return noted["done"], noted["unreadable"], open_table(wanted, part, mode="r+")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    state.unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    return 0, {}, None


def open_table(wanted: Wanted, part: Path, **how) -> np.ndarray:
    """numpy's `open_memmap`, when there is room: a disk that fills up under a mapped file kills the process wordlessly.

    Raises:
        DataError: there is none.
    """
    table = np.lib.format.open_memmap(part, **how)
    needed = table.nbytes - part.stat().st_blocks * 512  # what was never written takes no room yet
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{wanted.key}: {wanted.file} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make "
            "room, name a file on another disk, or write fewer --crops"
        )
    return table
