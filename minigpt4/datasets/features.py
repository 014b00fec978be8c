"""What a frozen vision tower makes of the pictures of a list, computed once: `build_info.features` names the file.

`minigpt4 features` writes it: X.npy, float16 (photos, crops, N, D_vit), read where it is used (mapped); and X.json
beside it, which says what it was made of. With an `eval` image processor crop 0 is the whole picture, by it; the others
are drawn as in training.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..common.errors import DataError
from ..common.paths import resolve_path
from ..common.schema import ModelConfig, ProcessorConfig
from .decoding import check_caption
from .image_text import ImageTextSource

Pairs = Sequence[tuple[Path, str | list[str]]]


def made_from(model: ModelConfig, processor: ProcessorConfig, pairs: Pairs, crops: int) -> dict:
    """All that the features depend on; the weights by their content."""
    with open(resolve_path(model.vit_ckpt), "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    images = "\n".join(f"{path.parent.name}/{path.name}" for path, _ in pairs)
    return {
        "vit_model": model.vit_model, "vit_kwargs": dict(model.vit_kwargs), "vit_ckpt": weights,
        "image_size": model.image_size, "vis_processor": processor.kwargs(), "crops": crops,
        "images": hashlib.sha256(images.encode()).hexdigest(),
    }  # fmt: skip


def facts_file(features: Path) -> Path:
    """X.npy -> X.json"""
    return features.with_suffix(".json")


class FeatureSource(ImageTextSource):
    """Like the list itself, but a sample's `image` is a drawn crop's features, float32 (N, D_vit).

    Args:
        listed: the list that has the pictures themselves.
        file: the .npy file.
        expected: what `made_from` says now.
    Raises:
        DataError: the file is missing, or was made of something else.
    """

    def __init__(self, listed: ImageTextSource, file: Path, expected: dict):
        super().__init__(listed.pairs, listed.vis_processor, listed.text_processor)
        again = "`minigpt4 features --cfg-path` with this config makes it"
        try:
            facts = json.loads(facts_file(file).read_text(encoding="utf-8"))
            self.features = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"features {file} cannot be read: {error}; {again}") from None
        other = [key for key in expected if facts.get(key) != expected[key]]
        if other or len(self.features) != len(self.pairs):
            raise DataError(f"features {file} were made with other {', '.join(other)}; {again} anew")
        self.row = {path: i for i, (path, _) in enumerate(self.pairs)}

    def decode(self, raw: tuple[Path, str | list[str]]) -> dict:
        """See `Source`."""
        path, text = raw
        captions = [self.text_processor(check_caption(t)) for t in ([text] if isinstance(text, str) else text)]
        crop = int(torch.randint(self.features.shape[1], ()))
        tokens = torch.from_numpy(self.features[self.row[path], crop].astype(np.float32))
        return {"image": tokens, "text_input": captions[0] if isinstance(text, str) else captions}
