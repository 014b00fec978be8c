"""Images and texts listed in one file: stage 2's `filter_cap.json`, and captioned photos in JSON lines."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import DataError
from ..common.paths import read_text
from ..processors.image_processors import decoder_of
from .faults import BadJson, clean_caption, decode_json, read_image_file
from .stream import permutation_stream

Pair = tuple[Path, str | list[str]]  # image file, its caption or captions
PHOTO_LINE = '{"image": "a.jpg", "caption": "A dog on grass."}'


class ImageTextSource:
    """Every pair once in each pass, in a new order each time. Of several captions, a sample has a random one.
    `features`, see features.py, takes the place of pixels: image file -> features of the frozen ViT (N, D_vit)."""

    def __init__(self, pairs: Sequence[Pair], vis_processor: Callable, text_processor: Callable, features=None):
        self.pairs = list(pairs)
        self.vis_processor, self.text_processor, self.features = vis_processor, text_processor, features

    def __len__(self) -> int:
        return len(self.pairs)

    def iterate(self, stream: int, streams: int, seed: int, state: dict) -> Iterator[tuple[dict, str, tuple]]:
        """See `Source`."""
        for place, index in permutation_stream(len(self.pairs), stream, streams, seed, state):
            yield place, str(self.pairs[index][0]), self.pairs[index]

    def decode(self, raw: Pair) -> dict:
        """See `Source`."""
        captions = self.captions(raw)
        chosen = int(torch.randint(len(captions), ())) if len(captions) > 1 else 0
        return {"image": self.picture(raw[0]), "text_input": captions[chosen]}

    def captions(self, raw: Pair) -> list[str]:
        """All captions of a pair, after the text processor. Raises NoCaption, BadCaption."""
        texts = [raw[1]] if isinstance(raw[1], str) else raw[1]
        return [clean_caption(text, self.text_processor) for text in texts]

    def picture(self, path: Path) -> Tensor:
        """The model's input of a picture: pixels (3, H, W), or features (N, D_vit)."""
        if self.features:
            return self.features(path)
        return self.vis_processor(read_image_file(path, decoder_of(self.vis_processor)))


def read_filter_cap(folder: str) -> list[Pair]:
    """The pairs of `folder/filter_cap.json` ({"annotations": [{"image_id", "caption"}]}); images in `folder/image/`.
    Raises DataError with the entry that is wrong."""
    file = Path(folder) / "filter_cap.json"
    if not file.is_file():
        raise DataError(f"{folder} has no filter_cap.json; dataset/README_2_STAGE.md describes the folder")
    try:
        annotations = decode_json(read_text(file), "its text").get("annotations")
    except BadJson as error:
        raise DataError(f"{file}: {error}") from None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f'{file}: should be {{"annotations": [...]}}, with an entry for each picture')
    pairs = []
    for i, entry in enumerate(annotations):
        if not isinstance(entry, dict) or "image_id" not in entry or not isinstance(entry.get("caption"), str):
            raise DataError(f"{file}: annotations[{i}] needs image_id and caption (a text); it is {entry!r}")
        pairs.append((inside(Path(folder) / "image", f"{entry['image_id']}.jpg", file), entry["caption"]))
    return pairs


def read_json_lines(file: Path) -> list[tuple[str, dict]]:
    """(`FILE:LINE`, object) of each line that is not empty. Raises DataError with the line that is no JSON object."""
    if not file.is_file():
        raise DataError(f"{file}: should be a file of JSON lines")
    found = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # texts may hold other line breaks
        if line.strip():
            where = f"{file}:{number}"
            try:
                found.append((where, decode_json(line, "the line")))
            except BadJson as error:
                raise DataError(f"{where}: {error}; write {PHOTO_LINE}") from None
    return found


def folder_of_images(file: Path, images: str | None) -> Path:
    """Where the images of a list lie: in `images`, or in `photos/` beside the list, or beside it."""
    if images:
        return Path(images)
    return file.parent / "photos" if (file.parent / "photos").is_dir() else file.parent


def read_photos(file: str, images: str | None = None, splits: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of a JSON-lines file, a photo a line: {"image": path below `images`, "captions": [...], "split": name},
    or "caption" with one text. Takes the `splits` (default: all). `images`: see `folder_of_images`. Raises DataError
    with the line that is wrong."""
    path = Path(file)
    folder = folder_of_images(path, images)
    pairs, seen = [], set()
    for where, entry in read_json_lines(path):
        image, captions = entry.get("image"), entry.get("captions", [entry.get("caption")])
        texts = isinstance(captions, list) and captions and all(isinstance(c, str) for c in captions)
        if not isinstance(image, str) or not texts:
            raise DataError(f"{where}: needs image (a file name) and captions (a list of texts); write {PHOTO_LINE}")
        seen.add(entry.get("split"))
        if splits is None or entry.get("split") in splits:
            pairs.append((inside(folder, image, path), captions))
    if not seen:
        raise DataError(f"{path}: is empty; write a line for each photo, {PHOTO_LINE}")
    unknown = sorted(set(splits or ()) - seen)
    if unknown or not pairs:
        raise DataError(
            f"{path}: no photos of split {', '.join(unknown)}; it has {', '.join(map(str, sorted(seen, key=str)))}"
        )
    return pairs


def inside(folder: Path, name: str, source: Path) -> Path:
    """`folder/name`; a name from a data file may not lead out of the folder."""
    path = Path(os.path.normpath(folder / name))  # by its letters: links that the user laid in the folder are fine
    if not path.is_relative_to(os.path.normpath(folder)):
        raise DataError(f"{source}: image {name!r} lies outside {folder}")
    return path
