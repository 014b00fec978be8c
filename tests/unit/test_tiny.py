"""The small model's recipe: its data, and the commands it strings together."""

import json
from pathlib import Path

import pytest
import torch

from minigpt4 import cli
from minigpt4.common.config import load_config
from minigpt4.common.errors import DataError
from minigpt4.datasets.image_text import read_photos
from recipes import steps
from recipes.tiny import train as tiny
from recipes.tiny.classes import imagenet_names
from recipes.tiny.photos import make_photos, sentence, with_article, words_of
from tests.made import picture


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a  dog runs ", "A dog runs."),
        ("A dog runs .", "A dog runs."),
        ("Dogs", "Dogs."),
    ],
)
def test_a_caption_is_written_one_way(given, written):
    assert sentence(given) == written


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("a photo of a Afghan hound", "a photo of an Afghan hound"),
        ("a photo of an unicycle", "a photo of a unicycle"),
        ("a photo of a hourglass", "a photo of an hourglass"),
        ("a photo of a umbrella", "a photo of an umbrella"),
        ("a photo of a beaver", "a photo of a beaver"),
    ],
)
def test_an_article_goes_by_the_sound(given, written):
    assert with_article(given) == written


@pytest.fixture
def photos(tmp_path):
    """photos.jsonl with two photos of each split, and forty of caltech_train."""
    rows = []
    for split, count in (
        ("flickr_train", 2),
        ("flickr_val", 2),
        ("flickr_dev", 2),
        ("flickr30k", 1),
        ("coco_train", 2),
        ("coco_more", 1),
        ("imagenet_sample", 2),
        ("caltech_train", 40),
    ):
        human = split.startswith(("flickr", "coco"))
        folder = tmp_path / "given" / "photos" / split
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.png").write_bytes(picture(i))
            captions = ["a dog  runs on sand", "A dog runs"] if human else ["a photo of a owl"]
            rows.append({"image": f"{split}/{i}.png", "split": split, "captions": captions})
    file = tmp_path / "given" / "photos.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_list_is_made_of_every_split_with_labels_held_out(photos, tmp_path):
    counts = make_photos(photos, tmp_path / "data")
    assert (
        counts["human_train"] == 6 and counts["human_val"] == counts["human_dev"] == 2 and counts["imagenet_train"] == 2
    )
    assert counts["caltech_train"] + counts["caltech_val"] == 40 and 0 < counts["caltech_val"] < 12
    file = tmp_path / "data" / "photos.jsonl"
    pairs = read_photos(str(file), splits=["human_train"])
    assert all(path.is_file() for path, _ in pairs)
    assert pairs[0][1] == ["A dog runs on sand.", "A dog runs."]
    held_out = {path for path, _ in read_photos(str(file), splits=["caltech_val"])}
    assert held_out.isdisjoint(path for path, _ in read_photos(str(file), splits=["caltech_train"]))
    words = set((tmp_path / "data" / "words.txt").read_text().split())
    names = set(words_of([], imagenet_names()))  # the encoder's classes
    assert words == {"dog", "runs", "sand", "owl"} | names  # neither stop words nor "photo"
    assert {"espresso", "axolotl"} <= names and names.isdisjoint({"photo", "a", "on"})
    make_photos(photos, tmp_path / "data")
    assert {p for p, _ in read_photos(str(file), splits=["caltech_val"])} == held_out


def test_words_of_validation_photos_do_not_count():
    rows = [{"split": "human_val", "captions": ["a zebra"]}] * 3 + [{"split": "human_train", "captions": ["a cow"]}] * 2
    assert words_of(rows) == ["cow"]


def test_photos_without_a_split_are_refused(photos, tmp_path):
    photos.write_text(photos.read_text().replace("flickr_val", "other"))
    with pytest.raises(DataError, match="no photos of split flickr_val"):
        make_photos(photos, tmp_path / "data")


def test_every_stage_goes_on_from_the_one_before(tmp_path):
    """The moved paths are keys of the configs, and lead from stage to stage."""
    places = tiny.Places(tmp_path / "data", tmp_path / "out")
    configs = {s: load_config(file, places.options(s), mode="show") for s, file in tiny.CONFIGS.items()}
    last = {s: f"{tmp_path}/out/{s}/checkpoint_{c.run.max_epoch - 1}.pth" for s, c in configs.items()}
    assert configs["words"].model.ckpt is None and configs["words"].model.arch == "mini_gpt4_words"
    assert configs["stage0"].model.ckpt == last["words"] and configs["stage0"].model.q_former_model is None
    assert configs["stage1"].model.q_former_model == configs["stage2"].model.q_former_model == last["stage0"]
    assert configs["stage1"].model.ckpt == last["stage0"] and configs["stage1"].model.freeze_qformer
    assert configs["stage2"].model.ckpt == last["stage1"]
    for config in configs.values():
        seen = [s for d in config.datasets.values() for s in d.build_info.splits or ()]
        assert not {"human_val", "human_dev"} & set(seen)
        assert config.model.vit_ckpt == config.datasets["class_names"].extra["classifier"]
        assert str(config.datasets["human_captions"].build_info.features).startswith(str(tmp_path / "data"))
        assert config.run.output_dir.startswith(str(tmp_path / "out"))


def test_the_recipe_runs_its_commands_in_order_and_goes_on(photos, tmp_path, monkeypatch, capsys):
    """With commands that only leave what the next one needs: order, reuse, a failure in the middle, the figures."""
    ran, fails = [], {"stage1"}

    def run_to_end(command):
        verb = command[command.index("minigpt4.cli") + 1] if "minigpt4.cli" in command else "train"
        options = (
            dict(o.split("=", 1) for o in command[command.index("--options") + 1 :]) if "--options" in command else {}
        )
        stage = options.get("run.output_dir", "").rsplit("/", 1)[-1]
        ran.append(stage if verb == "train" else verb)
        if stage in fails:
            return 1
        if verb == "train":
            folder = tmp_path / "out" / stage
            folder.mkdir(parents=True)
            for name in range(7):
                torch.save({"model": {"llama_proj.weight": torch.ones(2, 2)}}, folder / f"checkpoint_{name}.pth")
        elif verb == "curate":
            curated = tmp_path / "out" / "curated"
            curated.mkdir()
            (curated / "filter_cap.json").write_text("{}")
        elif verb == "eval":
            suite = (
                Path(command[command.index("--out") + 1]) / command[command.index("--suite") + 1] / "stage2-photos-1234"
            )
            suite.mkdir(parents=True, exist_ok=True)
            score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
            results = {"measures": {"m": {"label": "words an answer"}}, "scores": {"after": {"m": score}}}
            (suite / "results.json").write_text(json.dumps(results))
        return 0

    monkeypatch.setattr(steps, "run_to_end", run_to_end)
    arguments = ["tiny", "--photos", str(photos), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    assert "recipes/tiny/stage1.yaml did not finish" in capsys.readouterr().err
    assert ran == ["weights", "features", "features", "words", "stage0", "stage1"]
    ran.clear(), fails.clear()
    assert cli.main(arguments) == 0
    assert ran == ["weights", "features", "features", "stage1", "curate", "stage2", *["eval"] * 10]
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(figures) == 10 and figures["stage2, caption: words an answer"] == [0.5, 0.4, 0.6]
    assert sorted(f.name for f in (tmp_path / "out" / "weights").iterdir()) == [
        "qformer.safetensors", "stage1.safetensors", "stage2.safetensors",
    ]  # fmt: skip
    assert cli.main([*arguments, "--seed", "7"]) == 1
    assert "write another --out" in capsys.readouterr().err
    assert cli.main(["tiny", "--photos", str(tmp_path / "none.jsonl")]) == 1
