"""The small model's training list: captioned photos written one way, a tenth of the labelled ones held out."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.errors import DataError
from minigpt4.common.paths import write_whole
from minigpt4.datasets.image_text import read_photos
from recipes.english import article

from .classes import imagenet_names
from .questions import WORDS

WORD = re.compile(r"[a-z'-]+")
# Which splits of the photos' own list make up which of ours; a label split is parted by LABEL_HELD_OUT.
HUMAN = {
    "human_train": ["flickr_train", "flickr30k", "coco_train", "coco_more"],
    "human_dev": ["flickr_dev"],  # for decisions
    "human_val": ["flickr_val"],  # for the card's figures
}
LABELS = {"caltech": ["caltech_train"], "imagenet": ["imagenet_sample"]}
LABEL_HELD_OUT = 10  # every tenth Caltech photo, by the hash of its name, is never trained on
STOP_WORDS = frozenset(WORDS["stop_words"].split())
LEAST_PHOTOS = 2  # a word of fewer photos teaches nothing


def make_photos(photos: Path, folder: Path) -> dict[str, int]:
    """Write `folder/photos.jsonl`, `folder/words.txt`, and a link `folder/photos` to where the pictures lie.

    Args:
        photos: JSON lines as `datasets.image_text.read_photos` reads them, with the splits of HUMAN and LABELS.
    Returns:
        photos of each split
    Raises:
        DataError: a line is wrong, a split is missing.
    """
    rows: list[dict] = []
    images = photos.resolve().parent / "photos"
    for split, sources in HUMAN.items():
        for path, captions in read_photos(str(photos), splits=sources):
            rows.append({"image": _name(path, images), "split": split, "captions": [sentence(c) for c in captions]})
    for name, sources in LABELS.items():
        for path, captions in read_photos(str(photos), splits=sources):
            image = _name(path, images)
            held_out = name == "caltech" and int(hashlib.sha256(image.encode()).hexdigest(), 16) % LABEL_HELD_OUT == 0
            split = f"{name}_val" if held_out else f"{name}_train"
            rows.append({"image": image, "split": split, "captions": [with_article(captions[0])]})
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "photos"
    if not link.exists():
        link.symlink_to(images)
    if link.resolve() != images.resolve():
        raise DataError(f"{link} leads to {link.resolve()}, not to {images}; write another --data")
    write_whole(folder / "photos.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_whole(folder / "words.txt", "\n".join(words_of(rows, imagenet_names())) + "\n")
    return dict(Counter(row["split"] for row in rows))


def _name(path: Path, images: Path) -> str:
    try:
        return str(path.resolve().relative_to(images.resolve()))
    except ValueError:
        raise DataError(f"{path} should lie below {images}") from None


def sentence(caption: str) -> str:
    """One way to write a caption: single spaces, a capital, a full stop."""
    caption = " ".join(caption.split()).rstrip(" .") + "."
    return caption[0].upper() + caption[1:]


def with_article(caption: str) -> str:
    """ "a photo of a Afghan hound" -> "a photo of an Afghan hound"; as the word sounds, not as it is spelt."""
    caption = " ".join(caption.split())
    return re.sub(r"^a photo of an? (.+)$", lambda match: f"a photo of {article(match[1])} {match[1]}", caption)


def words_of(rows: list[dict], names: Sequence[str] = ()) -> list[str]:
    """The words of the training captions and of `names` that name something, the commonest first."""
    counts: Counter[str] = Counter()
    for row in rows:
        if row["split"].endswith("_train"):
            text = " ".join(re.sub(r"^a photo of an? ", "", caption) for caption in row["captions"]).lower()
            words = set(WORD.findall(text)) - STOP_WORDS
            # A label stands once, and is worth as much as what many people say.
            counts.update(dict.fromkeys(words, 1 if row["split"].startswith("human") else LEAST_PHOTOS))
    for name in names:
        counts.update(dict.fromkeys(set(WORD.findall(name.lower())) - STOP_WORDS, LEAST_PHOTOS))
    return [word for word, n in counts.most_common() if n >= LEAST_PHOTOS]
