"""What an evaluation is about: a picture, or a question about one; where published annotations are to be had."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import DataError

WHERE = {
    "photos": "a JSON line a photo: {image, captions, split}",
    "questions": "a JSON line a question: {image, question, answer, split}",
    "coco captions": "captions_val2017.json of https://cocodataset.org/#download",
    "coco instances": "instances_val2017.json of https://cocodataset.org/#download",
    "karpathy": "dataset_coco.json of https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "vqa questions": "v2_OpenEnded_mscoco_val2014_questions.json of https://visualqa.org/download.html, or OK-VQA's of "
    "https://okvqa.allenai.org/download.html",
    "vqa annotations": "v2_mscoco_val2014_annotations.json of https://visualqa.org/download.html, or OK-VQA's of "
    "https://okvqa.allenai.org/download.html",
    "gqa": "testdev_balanced_questions.json of https://cs.stanford.edu/people/dorarad/gqa/download.html",
    "aokvqa": "aokvqa_v1p0_val.json of https://github.com/allenai/aokvqa",
    "easy-vqa": "pip install -e '.[eval]', then --data easy-vqa",
    "folder": "a folder of pictures",
}  # fmt: skip
EXAMPLES = {  # what a line of one's own holds besides the image
    "photos": {"captions": ["A dog on grass."]},
    "questions": {"question": "What animal is this?", "answer": "dog"},
}


@dataclass(frozen=True)
class Record:
    """One picture, or one question about one.

    Args:
        id: unique in its data.
        truth: plain values: captions; objects (COCO's categories in it) and main; question, answers, rule, type;
            choices, correct.
    """

    id: str
    image: Path
    truth: dict


def image_folder(images: str | None, file: Path) -> Path:
    if images is None:
        raise DataError(f"{file} names images without a folder: add --images FOLDER")
    if not Path(images).is_dir():
        raise DataError(f"--images {images}: no such folder")
    return Path(images)


def by_coco_id(folder: Path) -> dict[int, Path]:
    """By COCO's image id, the 12 digits at the end of a name: 000000000139.jpg, COCO_val2014_000000000139.jpg."""
    found = {}
    for path in folder.iterdir():
        match = re.search(r"(\d{12})\.(?:jpg|jpeg|png)$", path.name)
        if match:
            found[int(match[1])] = path
    return found
