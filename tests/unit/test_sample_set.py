"""The sample set: same seed, same bytes; held-out combinations never in training; captions that are true."""

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from minigpt4 import cli
from minigpt4.common.errors import DataError
from minigpt4.datasets.image_text import read_photos
from recipes.quickstart.captions import long_caption, plain_caption, short_caption
from recipes.quickstart.pictures import Picture, Placed, compose, render
from recipes.quickstart.sample_set import heldout_plan, make_sample_set, split_combinations, training_plan
from recipes.quickstart.scenes import SCENES, SIDE, draw_scene
from recipes.quickstart.things import THINGS, Thing

DOG = Thing("1F415", "dog", synonyms=("puppy",))
APPLE = Thing("1F34E", "apple", "red")
PLANE = Thing("2708", "airplane", "gray", flies=True)


def picture(*placed: Placed, scene: str = "beach", extras: tuple[str, ...] = ()) -> Picture:
    return Picture(Image.new("RGB", (SIDE, SIDE)), placed, scene, extras)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return make_sample_set(tmp_path_factory.mktemp("data") / "set", seed=3, stage1=8, stage2=3, heldout=4)


def test_files_have_the_formats_that_the_datasets_read(small):
    for part, count in (("stage1", 8), ("stage2", 3)):
        pairs = read_photos(str(small / part / "photos.jsonl"))
        assert [path.name for path, _ in pairs] == [f"{i}.jpg" for i in range(count)]
        for path, captions in pairs:
            image = Image.open(path)
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE)) and len(captions) == 1
    heldout = json.loads((small / "heldout" / "annotations.json").read_text())["annotations"]
    assert [len(a["objects"]) for a in heldout] == [1, 2, 1, 2]
    for a in heldout:
        assert (small / "heldout" / a["image"]).is_file() and a["scene"] in SCENES
        assert all(set(o) == {"name", "place", "synonyms"} and o["name"] in a["caption"] for o in a["objects"])
    assert Image.open(small / "contact_sheet.png").width > 4 * SIDE
    assert "CC BY-SA 4.0" in (small / "README.txt").read_text()


def test_same_seed_gives_the_same_bytes_and_another_seed_others(small, tmp_path, monkeypatch):
    """Also when several processes draw it, as they do for larger sets."""
    monkeypatch.setattr("recipes.quickstart.sample_set.ALONE", 1)
    monkeypatch.setattr("recipes.quickstart.sample_set.os.cpu_count", lambda: 2)
    again = make_sample_set(tmp_path / "again", seed=3, stage1=8, stage2=3, heldout=4)
    assert digests(again) == digests(small)
    monkeypatch.undo()
    other = digests(make_sample_set(tmp_path / "other", seed=4, stage1=2, stage2=1, heldout=1))
    jpegs = [name for name in other if name.endswith(".jpg")]
    assert len(jpegs) == 4 and all(other[name] != digests(small)[name] for name in jpegs)


GREY = [  # of the held-out pictures of seed 3, in 4 x 4 tiles: the same pictures, whatever Pillow rounds
    [187, 187, 180, 177, 179, 185, 151, 160, 191, 158, 181, 198, 192, 176, 189, 209],
    [162, 167, 177, 177, 155, 152, 161, 165, 149, 142, 145, 142, 106, 102, 112, 109],
    [189, 189, 189, 189, 166, 161, 142, 158, 116, 118, 124, 171, 121, 106, 104, 131],
    [179, 179, 179, 179, 198, 201, 168, 161, 222, 189, 141, 164, 200, 195, 207, 216],
]


def test_a_seed_always_gives_the_same_set(small):
    files = ("stage1/photos.jsonl", "stage2/photos.jsonl", "heldout/annotations.json")
    texts = [(small / name).read_text() for name in files]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert digest == "32db524a04ef628ead3ab45caa2b17909258cafdd7d435116858d9df128875f4"
    for i, tiles in enumerate(GREY):
        image = Image.open(small / "heldout" / "photos" / f"{i}.jpg").reduce(SIDE // 4).convert("L")
        assert list(image.tobytes()) == pytest.approx(tiles, abs=2)


def test_a_second_call_reuses_and_other_parameters_replace(small, tmp_path, capsys):
    out = tmp_path / "data" / "set"
    command = ["sample-set", "--out", str(out), "--stage1", "2", "--stage2", "1", "--heldout", "1"]
    assert cli.main(command) == 0
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert cli.main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert f"already in {out}" in capsys.readouterr().out
    (out / "stage2" / "photos" / "0.jpg").unlink()  # no longer whole: made anew
    assert cli.main(command) == 0 and (out / "stage2" / "photos" / "0.jpg").is_file()
    assert cli.main([*command, "--stage2", "2"]) == 0 and (out / "stage2" / "photos" / "1.jpg").is_file()
    assert [p.name for p in out.parent.iterdir()] == ["set"]  # nothing half-written stays


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert cli.main(["sample-set", "--out", str(tmp_path)]) == 1
    assert f"--out {tmp_path} holds something else" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DataError, match="--heldout 0: write at least 1"):
        make_sample_set(tmp_path / "new", heldout=0)


def test_a_break_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.quickstart.sample_set.compose", broken)
    with pytest.raises(KeyboardInterrupt):
        make_sample_set(tmp_path / "set", stage1=2, stage2=1, heldout=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_heldout_combinations_never_occur_in_training_and_everything_occurs(seed):
    split = split_combinations(seed)
    training = list(training_plan(split, 2000, random.Random(seed)))
    places = {(thing.name, scene) for things, scene in training for thing in things}
    pairs = {frozenset(t.name for t in things) for things, _ in training if len(things) == 2}
    for things, scene in heldout_plan(split, 64, random.Random(seed)):
        if len(things) == 1:
            assert (things[0].name, scene) not in places
        else:
            assert frozenset(t.name for t in things) not in pairs
            assert all((t.name, scene) in places for t in things)  # so that only the pairing is new
    often = Counter(thing.name for things, _ in training for thing in things)
    assert set(often) == {t.name for t in THINGS} and max(often.values()) < 2 * min(often.values())
    assert {scene for _, scene in training} == set(SCENES)
    assert all(len({t.name for t in things}) == len(things) for things, _ in training)


def test_the_default_heldout_pictures_are_all_different():
    plan = [(frozenset(t.name for t in a), b) for a, b in heldout_plan(split_combinations(0), 64, random.Random(0))]
    assert len(set(plan)) == 64


def test_names_and_synonyms_belong_to_one_object():
    words = Counter(word for thing in THINGS for word in (thing.name, *thing.synonyms))
    assert 40 <= len(THINGS) <= 48 and max(words.values()) == 1
    assert len({thing.codepoint for thing in THINGS}) == len(THINGS)


def test_captions_of_a_lone_object():
    lone = picture(Placed(PLANE, "left", 0.48), extras=("the sun",))
    assert plain_caption(lone) == "an airplane at the beach"
    assert plain_caption(picture(Placed(DOG, "middle", 0.6))) == "a dog on a beach"
    texts = [long_caption(lone, random.Random(i)) for i in range(60)]
    assert all("The airplane is rather small and on the left side of the picture." in text for text in texts)
    assert not any("large" in text or "middle" in text or "cloud" in text or "sandy" in text for text in texts)
    assert any("sun" in text for text in texts) and any("gray" in text for text in texts)
    shorts = {short_caption(lone, random.Random(i)) for i in range(60)}
    assert len(shorts) > 6 and not any(" on a " in text or "large" in text for text in shorts)


def test_captions_of_two_objects_keep_left_right_and_size():
    pair = picture(Placed(APPLE, "left", 0.39), Placed(DOG, "right", 0.5), scene="room")
    for i in range(60):
        short, long = short_caption(pair, random.Random(i)), long_caption(pair, random.Random(i))
        assert short.index("apple") < short.index("dog")
        assert not re.search(r"apple is on the right|dog is on the left|The apple [^.]*larger", long)
    texts = " ".join(long_caption(pair, random.Random(i)) for i in range(60))
    assert texts.count(" shows two things ") + texts.count(" see two things ") == 60
    assert "The dog on the right is larger than the apple." in texts and "a red apple and a dog" in texts
    alike = picture(Placed(APPLE, "left", 0.45), Placed(DOG, "right", 0.46))
    assert not any("larger" in long_caption(alike, random.Random(i)) for i in range(60))


def test_every_caption_is_whole_and_short_enough():
    rng = random.Random(0)
    for _ in range(1500):
        things, extras = rng.sample(THINGS, rng.choice([1, 2])), ("pine trees", "falling snow")
        sides = [Placed(t, place, rng.uniform(0.38, 0.8)) for t, place in zip(things, ("left", "right"), strict=False)]
        made = picture(*sides, scene=rng.choice(list(SCENES)), extras=extras)
        long, short = long_caption(made, rng), short_caption(made, rng)
        sentences = re.findall(r"[A-Z][^.]*\.", long)
        assert " ".join(sentences) == long and 2 <= len(sentences) <= 3 and len(long.split()) <= 50
        assert len(set(sentences)) == len(sentences) and len(short.split()) <= 24
        assert all(t.name in long and t.name in short for t in things)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |photo", f"{long} {short}")


def test_an_extra_behind_an_object_is_not_named(monkeypatch):
    drawn = [seed for seed in range(40) if draw_scene("night", random.Random(seed))[1]]
    seed = next(seed for seed in drawn if compose([APPLE], "night", random.Random(seed)).extras == ("the moon",))
    everywhere = Image.new("RGBA", (SIDE, SIDE), "red")
    monkeypatch.setattr("recipes.quickstart.pictures._sprite", lambda *_: everywhere)
    assert compose([APPLE], "night", random.Random(seed)).extras == ()


def test_objects_are_where_and_as_large_as_the_picture_says():
    for i in range(30):
        left, right = compose([APPLE, DOG], "snow", random.Random(i)).placed
        assert (left.thing.name, left.place, right.thing.name, right.place) == ("apple", "left", "dog", "right")
        assert all(0.35 < placed.side < 0.57 for placed in (left, right))
    red = compose([APPLE, PLANE], "snow", random.Random(0)).image.convert("HSV")
    reds = [(x, y) for x in range(SIDE) for y in range(SIDE) if _is_red(red.getpixel((x, y)))]
    assert len(reds) > 1500 and sum(x for x, _ in reds) / len(reds) < 0.4 * SIDE


def _is_red(hsv: tuple[int, int, int]) -> bool:
    hue, saturation, value = hsv
    return (hue < 12 or hue > 243) and saturation > 140 and value > 90


def test_every_object_has_a_picture():
    for thing in THINGS:
        image = render(thing.codepoint)
        assert image.mode == "RGBA" and 280 <= max(image.size) <= 288
        assert image.getchannel("A").getbbox() == (0, 0, *image.size)
    with pytest.raises(DataError, match=r"no picture FFFFF\.svg.*'\.\[quickstart\]'"):
        render("FFFFF")
