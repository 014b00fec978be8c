"""`minigpt4 features --cfg-path X`: run the frozen vision tower once over the pictures of a config.

For each dataset with `build_info.features` (and `valid_info.features`) it writes that file; see datasets/features.py.
A file that is there and made of the same is left; one that was begun is gone on with.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..common.checkpoint import load_exact, named_tensors, read_state
from ..common.config import load_config
from ..common.dist_utils import choose_device
from ..common.errors import ConfigError, DataError
from ..common.paths import resolve_path
from ..common.schema import ModelConfig
from ..datasets.decoding import read_image_file
from ..datasets.features import facts_file, made_from
from ..datasets.image_text import ImageTextSource
from ..datasets.stream import seed_of
from ..models.eva_vit import create_vit, encode_tokens, published_vit_state
from ..models.llm import vit_dtype
from ..tasks.image_text_pretrain import build_processor, build_source

NOTE_EVERY = 64  # pictures after which it is noted how far the file is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="the training config")
    parser.add_argument("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")
    parser.add_argument("--batch", type=int, default=8, help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.cfg_path, args.options, mode="show")
    device = choose_device(args.device, f"--device {args.device}")
    if not config.model.freeze_vit or not config.model.vit_ckpt:
        raise ConfigError(f"{config.path}: features are of a frozen ViT: set model.freeze_vit and model.vit_ckpt")
    wanted = [
        (f"datasets.{name}.{part}", name, dataclasses.replace(dataset, build_info=info))
        for name, dataset in config.datasets.items()
        for part, info in (("build_info", dataset.build_info), ("valid_info", dataset.valid_info))
        if info and info.features
    ]
    if not wanted:
        raise ConfigError(f"{config.path}: no dataset names build_info.features; write the .npy file to be made")
    vit = None
    for where, name, dataset in wanted:
        source, info = build_source(name, dataset, "train"), dataset.build_info
        if not isinstance(source, ImageTextSource):
            raise ConfigError(f"{where}.features is for lists of pictures, not for {dataset.builder or name}")
        file = Path(resolve_path(info.features))
        if file.suffix != ".npy":
            raise ConfigError(f"{where}.features: {info.features!r} should end in .npy")
        facts = made_from(config.model, dataset.vis_processor.train, source.pairs, info.feature_crops)
        whole = build_processor(dataset.vis_processor.eval) if dataset.vis_processor.eval else None
        crops = Crops(source, whole, info.feature_crops, config.run.seed)
        if finished(file, facts):
            print(f"{where}: {file} is there")
            continue
        vit = vit or load_vit(config.model, device)
        vision = partial(encode, vit, vit_dtype(config.model.vit_precision, device), device)
        write_features(vision, crops, file, facts, args.batch, config.run.num_workers)
        print(f"{where}: {file}, {len(crops)} pictures x {info.feature_crops}, {file.stat().st_size / 1e6:,.0f} MB")
    return 0


def load_vit(config: ModelConfig, device: torch.device) -> torch.nn.Module:
    """The vision tower alone; fp32 weights, laid out as convolutions are fastest."""
    vit = create_vit(config.vit_model, config.image_size, **config.vit_kwargs)
    state = published_vit_state(read_state(config.vit_ckpt), vit)
    load_exact(named_tensors(vit), state, config.vit_ckpt)
    return vit.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


class Crops(Dataset):
    """Picture -> crops (crops, 3, H, W): the whole one, if `whole` is a processor, then drawn ones, seeded."""

    def __init__(self, source: ImageTextSource, whole, crops: int, seed: int):
        self.source, self.whole, self.crops, self.seed = source, whole, crops, seed

    def __len__(self) -> int:
        return len(self.source.pairs)

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self.source.pairs[index][0]
        try:
            image = read_image_file(path)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of(self.seed, index))
                first = [self.whole(image)] if self.whole else []
                return torch.stack(
                    [*first, *(self.source.vis_processor(image) for _ in range(self.crops - len(first)))]
                )
        except Exception as error:  # whatever a decoder raises
            raise DataError(f"{path}: cannot be read: {error}; take it out of the list") from None


def finished(file: Path, facts: dict) -> bool:
    try:
        return file.exists() and json.loads(facts_file(file).read_text(encoding="utf-8")) == facts
    except (OSError, ValueError):
        return False


@torch.inference_mode()
def encode(vit: torch.nn.Module, dtype: torch.dtype, device: torch.device, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> tokens (B, N, D_vit), on the CPU; in `dtype`, as the model itself would."""
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return encode_tokens(vit, images).float().cpu()


def write_features(
    encode: Callable[[torch.Tensor], torch.Tensor], crops: Crops, file: Path, facts: dict, batch: int, num_workers: int
) -> None:
    """Into X.part.npy, with the number of pictures done in X.part.json; renamed to X.npy when it is whole."""
    part, state = file.with_suffix(".part.npy"), file.with_suffix(".part.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    done, table = 0, None
    try:
        begun = json.loads(state.read_text(encoding="utf-8"))
        if begun["facts"] == facts:
            done, table = begun["done"], np.lib.format.open_memmap(part, mode="r+")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    rest = Subset(crops, range(done, len(crops)))
    loader = DataLoader(rest, batch_size=batch, num_workers=num_workers)
    told = time.monotonic()
    for images in tqdm(loader, desc=file.stem, unit="batch", dynamic_ncols=True, disable=None):
        tokens = encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, crops, N, D_vit)
        if table is None:
            table = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(len(crops), *tokens.shape[1:]))
        table[done : done + len(tokens)] = tokens.numpy()
        done += len(tokens)
        if done % NOTE_EVERY < batch:
            table.flush()
            state.write_text(json.dumps({"facts": facts, "done": done}), encoding="utf-8")
        if not sys.stderr.isatty() and time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"  {file.stem}: {done} of {len(crops)} pictures", flush=True)
    table.flush()
    facts_file(file).unlink(missing_ok=True)  # between the two names stands no pair that does not belong together
    os.replace(part, file)
    facts_file(file).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    state.unlink(missing_ok=True)
