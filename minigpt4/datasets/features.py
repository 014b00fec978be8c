"""What a frozen vision tower makes of the pictures of a list, computed once: `build_info.features` names the file.

`minigpt4 features` writes it: X.npy, float16 (photos, crops, N, D_vit); and X.json beside it, which says what it was
made of. With an `eval` image processor crop 0 is the whole picture, by it; the others are drawn as in training.
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.download import local_path
from ..common.errors import ConfigError, DataError
from ..common.paths import sha256
from ..common.schema import ModelConfig, ProcessorsConfig
from .faults import Unreadable

Pairs = Sequence[tuple[Path, str | list[str]]]


def made_from(model: ModelConfig, processors: ProcessorsConfig, pairs: Pairs) -> dict:
    """All that the features depend on; the weights by their content, the pictures by their names and sizes. The file
    itself says how many crops of each picture it holds.

    Raises:
        ConfigError: model.vit_ckpt cannot be read.
        DataError: a picture is missing.
    """
    images = hashlib.sha256()
    for path, _ in pairs:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; bring it back, or take it out of the list") from None
        images.update(f"{short_name(path)} {size}\n".encode())
    seen_by = {split: vars(processors)[split] for split in ("train", "eval")}
    return {
        "vit_model": model.vit_model, "vit_kwargs": dict(model.vit_kwargs), "vit_precision": model.vit_precision,
        "vit_ckpt": _content(model.vit_ckpt), "image_size": model.image_size,
        "vis_processor": {s: p and {"name": p.name, **p.kwargs()} for s, p in seen_by.items()},
        "images": images.hexdigest(),
    }  # fmt: skip


@functools.cache
def _content(vit_ckpt: str | None) -> str:
    """SHA-256 of the weights; they are gigabytes, and every list asks for it."""
    if vit_ckpt is None:
        raise ConfigError("model.vit_ckpt: not set; features are of a frozen ViT: write the path of its weights")
    try:
        return sha256(Path(local_path(vit_ckpt)))
    except OSError as error:
        raise ConfigError(f"model.vit_ckpt: {vit_ckpt}: {error.strerror}; write the path of its weights") from None


def facts_file(features: Path) -> Path:
    """X.npy -> X.json: what `made_from` said, and `unreadable`: picture -> why; its features are zeros."""
    return features.with_suffix(".json")


def read_facts(file: Path) -> dict:
    """Raises OSError, or ValueError: it is not the JSON of a dict."""
    facts = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError(f"{file.name} holds a {type(facts).__name__}, not what the features were made of")
    return facts


def differing(facts: dict, expected: dict) -> list[str]:
    """The keys in which `facts` are not those that are expected."""
    return [key for key in expected if facts.get(key) != expected[key]]


def short_name(path: Path) -> str:
    """A picture's name wherever the list lies."""
    return f"{path.parent.name}/{path.name}"


class FeatureTable:
    """Image file -> features of one of its crops, float32 (N, D_vit), read from the .npy file at each call.

    Args:
        pairs: the list whose pictures the file is of, in its order.
        file: the .npy file.
        expected: what `made_from` says now.
        drawn: whether the crop is drawn; else it is crop 0.
    Raises:
        DataError: the file is missing, or was made of something else.
    """

    def __init__(self, pairs: Pairs, file: Path, expected: dict, drawn: bool = True):
        again = "`minigpt4 features --cfg-path` with this config makes it"
        try:
            facts = read_facts(facts_file(file))
            mapped = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file} cannot be read: {error}; {again}") from None
        if other := differing(facts, expected):
            raise DataError(f"{file} was made with other {', '.join(other)}; {again} anew")
        self.file, self.shape, self.dtype, self.offset = file, mapped.shape, mapped.dtype, mapped.offset
        if self.shape[:2] != (len(pairs), facts.get("crops")):
            shape = " x ".join(map(str, self.shape))
            raise DataError(
                f"{file} holds {shape} numbers, not those of {len(pairs)} pictures with {facts.get('crops')} crops; "
                f"delete it: {again} anew"
            )
        self.drawn, self.unreadable = drawn, facts.get("unreadable", {})
        self.row = {path: i for i, (path, _) in enumerate(pairs)}

    def __call__(self, path: Path) -> Tensor:
        if why := self.unreadable.get(short_name(path)):
            raise Unreadable(f"{path.name}: when its features were made: {why}")
        _, crops, *shape = self.shape
        crop = int(torch.randint(crops, ())) if self.drawn else 0
        # Read, not mapped: what the system has dropped of a file of gigabytes comes back in one piece, sooner.
        size = math.prod(shape)
        start = self.offset + (self.row[path] * crops + crop) * size * self.dtype.itemsize
        read = np.fromfile(self.file, self.dtype, size, offset=start)
        return torch.from_numpy(read.reshape(shape).astype(np.float32))
