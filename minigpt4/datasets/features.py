"""Features of a frozen ViT, computed once for the pictures of a list: `build_info.features` names the file.

`minigpt4 features` writes X.npy, float16 (pictures, crops, N, D_vit), and X.json, which says what it was made of. With
an `eval` image processor crop 0 is the whole picture; the other crops are random, as in training.
"""

import functools
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.download import local_path
from ..common.errors import ConfigError, DataError
from ..common.paths import sha256
from ..common.schema import ModelConfig, ProcessorsConfig
from .faults import Unreadable


def made_from(model: ModelConfig, processors: ProcessorsConfig, pairs: list[tuple]) -> dict:
    """All that the features depend on: weights by their content, pictures by their names and sizes. Raises ConfigError
    for missing weights, DataError for a missing picture."""
    images = hashlib.sha256()
    for path, _ in pairs:
        try:
            images.update(f"{short_name(path)} {path.stat().st_size}\n".encode())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; bring it back, or take it out of the list") from None
    used = {split: getattr(processors, split) for split in ("train", "eval")}
    return {
        "vit_model": model.vit_model, "vit_kwargs": dict(model.vit_kwargs), "vit_precision": model.vit_precision,
        "vit_ckpt": _content(model.vit_ckpt), "image_size": model.image_size,
        "vis_processor": {split: p and {"name": p.name, **p.kwargs()} for split, p in used.items()},
        "images": images.hexdigest(),
    }  # fmt: skip


@functools.cache
def _content(vit_ckpt: str | None) -> str:
    """SHA-256 of the weights: gigabytes, which every list of a config needs."""
    try:
        return sha256(Path(local_path(vit_ckpt or "null")))
    except OSError as error:
        raise ConfigError(f"model.vit_ckpt: {vit_ckpt}: {error.strerror}; write the path of its weights") from None


def read_facts(features: Path) -> dict:
    """X.npy -> what X.json holds: `made_from`'s facts; `crops` of each picture; `unreadable`, picture -> why its
    features are zeros. Empty when the file is missing or damaged."""
    try:
        facts = json.loads(features.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def differing(facts: dict, expected: dict) -> list[str]:
    """The keys whose value is not the expected one."""
    return [key for key in expected if facts.get(key) != expected[key]]


def short_name(path: Path) -> str:
    """A picture's name that does not change when the whole list moves."""
    return f"{path.parent.name}/{path.name}"


class FeatureTable:
    """Image file -> features of one of its crops, float32 (N, D_vit), read from the .npy file at each call.

    `pairs` are the pictures of the file, in its order; `expected` is what `made_from` returns now; `random_crop`
    takes a random crop instead of crop 0. Raises DataError for a file that was made from something else.
    """

    def __init__(self, pairs: list[tuple], file: Path, expected: dict, random_crop: bool = True):
        again = "`minigpt4 features --cfg-path` with this config makes it"
        try:
            table = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file} cannot be read: {error}; {again}") from None
        facts = read_facts(file)
        if other := differing(facts, expected):
            raise DataError(f"{file} was made with other {', '.join(other)}; {again} anew")
        self.file, self.shape, self.dtype, self.offset = file, table.shape, table.dtype, table.offset
        self.random_crop, self.unreadable = random_crop, facts.get("unreadable", {})
        self.row = {path: i for i, (path, _) in enumerate(pairs)}

    def __call__(self, path: Path) -> Tensor:
        if why := self.unreadable.get(short_name(path)):
            raise Unreadable(f"{path.name}: when its features were made: {why}")
        _, crops, *shape = self.shape
        crop = int(torch.randint(crops, ())) if self.random_crop else 0
        # One read is faster than a memory map, which fetches a large file page by page.
        size = math.prod(shape)
        start = self.offset + (self.row[path] * crops + crop) * size * self.dtype.itemsize
        read = np.fromfile(self.file, self.dtype, size, offset=start)
        return torch.from_numpy(read.reshape(shape).astype(np.float32))
