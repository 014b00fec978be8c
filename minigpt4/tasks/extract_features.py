"""`minigpt4 features --cfg-path X`: run the frozen ViT once over the pictures of a config.

Writes the file of each `build_info.features` and `valid_info.features`; see datasets/features.py. A finished file is
kept, and an interrupted one is continued. A picture that cannot be read gets zeros, and is a bad sample in training.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
from ..datasets.faults import read_image_file
from ..datasets.features import differing, made_from, read_facts, short_name
from ..datasets.image_text import ImageTextSource
from ..datasets.stream import seed_of
from ..models.eva_vit import create_vit, encode_tokens, published_vit_state
from ..tasks.image_text_pretrain import add_config_key_to_errors, build_processor, build_source

SAVE_EVERY = 64  # pictures after which the progress is saved
CROPS = 8  # of each training picture, by default


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


def run(args: argparse.Namespace) -> int:
    for flag, value in (("--batch", args.batch), ("--crops", args.crops)):
        if value is not None and value < 1:
            raise UserError(f"{flag}: {value} should be at least 1")
    config = load_config(args.cfg_path, args.options, mode="show")
    device = choose_device(args.device, f"--device {args.device}")
    if not config.model.freeze_vit or not config.model.vit_ckpt:
        raise ConfigError(f"{config.path}: features are of a frozen ViT: set model.freeze_vit and model.vit_ckpt")
    if unknown := [name for name in args.datasets or () if name not in config.datasets]:
        raise ConfigError(f"--datasets {unknown[0]}: the config has {', '.join(config.datasets)}")
    encode = None
    for table in tables_of(config, args.datasets or list(config.datasets), args.crops):
        if table.file.exists() and not differing(read_facts(table.file), table.facts):
            print(f"{table.key}: {table.file} is there, made of these pictures by this ViT (no other weights count); "
                  "delete it to make it anew")  # fmt: skip
            continue
        encode = encode or encoder(config.model, device)
        if unreadable := write_features(encode, table, args.batch, config.run.num_workers):
            some_of_them = some(f"{name} ({why})" for name, why in unreadable.items())
            said = f"{len(unreadable)} cannot be read, bad samples in training: {some_of_them}"
            print(f"  {said}. Delete the file to try again")
    return 0


@dataclass(frozen=True)
class FeatureFile(Dataset):
    """A file that a config names, and the crops to be encoded: picture -> (crops (C, 3, H, W), ""), or (zeros, why the
    picture cannot be read)."""

    key: str  # the config key that names the file
    file: Path
    facts: dict  # what the file is made from, with the number of `crops`
    source: ImageTextSource
    whole: Callable | None  # processor of the first crop; None: it is random like the others
    image_size: int
    seed: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        count = self.facts["crops"]
        try:
            image = read_image_file(self.source.pairs[index][0])
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of(self.seed, index))
                crops = [self.source.vis_processor(image) for _ in range(count - bool(self.whole))]
            return torch.stack([self.whole(image), *crops] if self.whole else crops), ""
        except Exception as error:  # decoders raise many kinds
            return torch.zeros(count, 3, self.image_size, self.image_size), f"{type(error).__name__}: {error}"


def tables_of(config: Config, names: list[str], crops: int | None) -> list[FeatureFile]:
    """The files of these datasets. `crops` is --crops. Raises ConfigError, DataError."""
    found: dict[Path, FeatureFile] = {}
    parts = [(name, *part) for name in names for part in config.datasets[name].infos() if part[1].features]
    for name, part, info in parts:
        where, file = f"datasets.{name}.{part}", Path(resolve_path(info.features))
        key = f"{where}.features"
        dataset = dataclasses.replace(config.datasets[name], build_info=info)
        with add_config_key_to_errors(f"{where}.storage"):
            source = build_source(name, dataset, "train", config.model)
        if not isinstance(source, ImageTextSource):
            raise ConfigError(f"{key}: is for lists of pictures, not for {dataset.builder or name}; leave it out")
        count = 1 if part == "valid_info" else crops or read_facts(file).get("crops") or CROPS
        with add_config_key_to_errors(key):
            facts = {**made_from(config.model, dataset.vis_processor, source.pairs), "crops": count}
        if file in found and (other := differing(found[file].facts, facts)):
            raise ConfigError(
                f"{key}: {file} is also {found[file].key}, of other {', '.join(other)}; write a file of its own"
            )
        whole = dataset.vis_processor.eval and build_processor(dataset.vis_processor.eval)
        found.setdefault(file, FeatureFile(key, file, facts, source, whole, config.model.image_size, config.run.seed))
    if not found:
        raise ConfigError(f"{config.path}: no dataset names build_info.features; write the .npy file to be made")
    return list(found.values())


def encoder(config: ModelConfig, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function (B, 3, H, W) -> tokens (B, N, D_vit) on the CPU, computed as in the whole model."""
    vit = create_vit(config.vit_model, config.image_size, **config.vit_kwargs)
    state = published_vit_state(read_state(config.vit_ckpt), vit)
    load_exact(named_tensors(vit), state, config.vit_ckpt)
    vit = vit.to(device, memory_format=torch.channels_last).eval()
    dtype = resolve_precision(config, device).vit

    @torch.inference_mode()
    def encode(images: torch.Tensor) -> torch.Tensor:
        images = images.to(device).contiguous(memory_format=torch.channels_last)  # convolutions are fastest so
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return encode_tokens(vit, images).float().cpu()

    return encode


def write_features(
    encode: Callable[[torch.Tensor], torch.Tensor], table: FeatureFile, batch: int, workers: int
) -> dict:
    """Write X.part.npy and, as the progress, X.part.json; rename them to X.npy and X.json at the end. Returns
    picture -> why it cannot be read. Raises DataError when none of the first pictures can be read."""
    file, part, array = table.file, table.file.with_suffix(".part.npy"), None
    progress = part.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    noted = read_facts(part)
    if differing(noted, table.facts) or not part.exists():
        progress.unlink(missing_ok=True)  # it would count pictures of another file as done
        noted = {**table.facts, "done": 0, "unreadable": {}}
    else:
        array = open_array(table, part, mode="r+")
    done, unreadable = noted["done"], noted["unreadable"]
    loader = DataLoader(Subset(table, range(done, len(table))), batch_size=batch, num_workers=workers)
    seconds = 0.1 if sys.stderr.isatty() else 30
    for images, reasons in tqdm(loader, desc=file.stem, unit="batch", dynamic_ncols=True, mininterval=seconds):
        tokens = encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, C, N, D_vit)
        if array is None:
            array = open_array(table, part, mode="w+", dtype=np.float16, shape=(len(table), *tokens.shape[1:]))
        for row, (values, why) in enumerate(zip(tokens.numpy(), reasons, strict=True), start=done):
            array[row] = 0 if why else values
            if why:
                unreadable[short_name(table.source.pairs[row][0])] = why
        done += len(tokens)
        if len(unreadable) == done >= min(SAVE_EVERY, len(table)):
            where, why = next(iter(unreadable.items()))
            raise DataError(f"{table.key}: none of the first {done} pictures can be read, e.g. {where}: {why}")
        if done % SAVE_EVERY < batch or done == len(table):
            array.flush()
            progress.write_text(json.dumps(noted | {"done": done}, indent=1), encoding="utf-8")
    file.with_suffix(".json").unlink(missing_ok=True)  # X.npy never stands beside the facts of another file
    os.replace(part, file)
    os.replace(progress, file.with_suffix(".json"))
    return unreadable


def open_array(table: FeatureFile, part: Path, **how) -> np.ndarray:
    """numpy's `open_memmap`. Raises DataError when the disk is too full: writing to the mapped file would kill the
    process."""
    array = np.lib.format.open_memmap(part, **how)
    needed = array.nbytes - part.stat().st_blocks * 512  # blocks that were never written take no room yet
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{table.key}: {table.file} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make "
            "room, name a file on another disk, or write fewer --crops"
        )
    print(f"{table.key}: {table.file}, {len(table)} pictures x {table.facts['crops']} crops, "
          f"{array.nbytes / 1e6:,.0f} MB", flush=True)  # fmt: skip
    return array
