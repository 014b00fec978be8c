"""`minigpt4 curate` from its command line, with the golden set's tiny model: a folder that stage 2 reads."""

import json

import pytest
import training
from made import openai_server

from minigpt4 import cli
from minigpt4.datasets.image_text import read_filter_cap

CAPTIONS = {
    "a/red.png": ["A red ball lies on grey ground.", "There is a red ball.", "A ball on the ground."],
    "blue.jpg": ["a photo of a euphonium"],
    "green.jpg": ["Fried eggs for breakfast.", "A boat at sea.", "Children dance."],
}


@pytest.fixture
def curate(write_config, published, tmp_path, capfd):
    """curate("--limit", 2) -> (exit code, stdout, stderr); the folder is tmp_path/pairs."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for place, name in enumerate(CAPTIONS):
        training.picture(["red", "blue", "green"][place], place).save(tmp_path / "photos" / name)
    lines = [{"image": name, "captions": captions, "split": name[0]} for name, captions in CAPTIONS.items()]
    (tmp_path / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = write_config("stage1", "chat", model={"ckpt": published["ckpt"]})

    def call(*words, data=None):
        argv = ["curate", "--cfg-path", config, "--data", str(data or tmp_path / "photos.jsonl")]
        argv += ["--out", str(tmp_path / "pairs"), "--device", "cpu", "--max-new-tokens", "12", "--batch", "2"]
        code = cli.main([*argv, *map(str, words)])
        return code, *capfd.readouterr()

    return call


def entries(folder) -> dict[str, dict]:
    lines = (folder / "pairs/curation.jsonl").read_text().splitlines()
    return {entry["image_id"]: entry for entry in map(json.loads, lines)}


def test_photos_become_pairs_for_stage_2(curate, tmp_path):
    code, out, err = curate()
    assert code == 0, err
    pairs = {path.name: text for path, text in read_filter_cap(str(tmp_path / "pairs"))}
    assert set(pairs) == {"a_red.jpg", "blue.jpg"}
    assert pairs["a_red.jpg"] == "A red ball lies on grey ground."
    assert pairs["blue.jpg"] == "This is a photo of a euphonium."
    assert (tmp_path / "pairs/image/a_red.jpg").resolve() == (tmp_path / "photos/a/red.png").resolve()
    found = entries(tmp_path)
    assert found["green"]["lost"] == "captions disagree" and found["green"]["text"] == ""
    for entry in found.values():  # random weights: nothing that they say is backed
        assert entry["answer"] and all(s["dropped"] for s in entry["sentences"])
        assert isinstance(entry["continued"], str)  # at most 12 tokens, so "Continue" was asked
    page = (tmp_path / "pairs/report.html").read_text()
    assert page.count("<article") == page.count("data:image/jpeg") == 3 and "http" not in page
    assert "dropped: captions disagree" in out and "kept" in out

    # Killed while it answered, it goes on: the model is asked for the missing answer alone.
    (answers,) = (tmp_path / "pairs/answers").glob("*.jsonl")
    whole = answers.read_text().splitlines()
    answers.write_text("\n".join(whole[:-1]))
    before = (tmp_path / "pairs/curation.jsonl").read_text()
    code, out, err = curate("--copy")
    assert code == 0 and "continue: 100%" in err and "describe: " not in err
    assert (tmp_path / "pairs/curation.jsonl").read_text() == before
    assert not (tmp_path / "pairs/image/blue.jpg").is_symlink()


def test_photos_that_lie_in_the_folder_already_are_kept(curate, tmp_path):
    (tmp_path / "photos").rename(tmp_path / "pairs")
    (tmp_path / "pairs" / "a").rename(tmp_path / "pairs/image")
    photo, other = tmp_path / "pairs/image/blue.jpg", tmp_path / "pairs/image/red.png"
    (tmp_path / "pairs/blue.jpg").rename(photo)
    listed = {"image": "image/blue.jpg", "captions": CAPTIONS["blue.jpg"], "split": "b"}
    (tmp_path / "photos.jsonl").write_text(json.dumps(listed))
    before = photo.read_bytes()
    words = ("--images", photo.parent)
    for name, more in (("blue.jpg", ()), ("blue.jpg", ("--copy",)), ("red.png", ()), ("red.png", ("--copy",))):
        (tmp_path / "photos.jsonl").write_text(json.dumps(listed | {"image": name}))
        code, _, err = curate(*words, *more)
        assert code == 0, err
        assert photo.read_bytes() == before and not photo.is_symlink()
        copied = tmp_path / "pairs/image/red.jpg"
        assert copied.is_symlink() == (name == "red.png" and not more)
    assert copied.read_bytes() == other.read_bytes()

    # Two photos that stage 2 calls by one name: the second one's would be written over the first.
    lines = [listed | {"image": name} for name in ("blue.png", "blue.jpg")]
    other.rename(other.with_name("blue.png"))
    (tmp_path / "photos.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, err = curate(*words)
    assert code == 1 and "blue.jpg is another picture than" in err and photo.read_bytes() == before


def test_a_folder_that_is_not_curates_is_left_alone(curate, tmp_path):
    out = tmp_path / "pairs"
    out.mkdir()
    (out / "filter_cap.json").write_text("{}")
    code, _, err = curate()
    assert code == 1 and f"--out {out} is a stage-2 folder that curate did not make; write another" in err
    assert [p.name for p in out.iterdir()] == ["filter_cap.json"]
    code, _, err = curate("--out", tmp_path / "photos.jsonl")
    assert code == 1 and "photos.jsonl: cannot be made a folder: File exists" in err


def test_one_turn_and_some_splits(curate, tmp_path):
    code, _, err = curate("--no-continue", "--split", "b")
    assert code == 0, err
    assert [e["continued"] for e in entries(tmp_path).values()] == [None] and set(entries(tmp_path)) == {"blue"}


def test_mistakes_are_said(curate, tmp_path):
    for words, message in [
        (("--split", "x"), "no photos of split x; it has a, b, g"),
        (("--batch", "0"), "--batch: 0 should be 1 or more"),
        (("--judge", "http://x"), "--judge-model"),
        (("--prompt", " "), "--prompt: empty"),
        (("--split", "g"), "none of the 1 photos has a description that stays"),
    ]:
        code, _, err = curate(*words)
        assert code == 1 and message in err, err
    code, _, err = curate(data=tmp_path / "photos")
    assert code == 1 and "this is folder" in err
    assert not (tmp_path / "pairs/filter_cap.json").exists()


def test_an_editor_is_asked_once(curate, tmp_path):
    pytest.importorskip("openai")
    with openai_server(lambda _: "A red ball. A red ball and a duck are here.") as (url, requests):
        words = ("--split", "a", "--judge", url, "--judge-model", "m")
        for _ in range(2):
            code, _, err = curate(*words)
            assert code == 0, err
        (request,) = requests
        asked = request["messages"][0]["content"]
        assert asked.startswith("Fix the error in the given paragraph. Remove any repeating sentences, meaningless")
        entry = entries(tmp_path)["a_red"]
        assert asked.endswith(f"explanation.\n\n{entry['answer']} {entry['continued']}")
        assert entry["edited"] == "A red ball. A red ball and a duck are here."
        assert [s["dropped"] for s in entry["sentences"]] == ["", "unsupported"]
        assert entry["text"] == "A red ball." and entry["added"] == []
        code, _, err = curate("--unchecked", *words)
        assert code == 0 and entries(tmp_path)["a_red"]["text"] == entry["edited"]
