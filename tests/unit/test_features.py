"""What the frozen vision tower makes of pictures, kept in a file."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml

from minigpt4 import cli
from minigpt4.common.config import load_config, read_config
from minigpt4.common.errors import DataError
from minigpt4.datasets.faults import Unreadable, read_image_file
from minigpt4.tasks import ImageTextPretrain
from minigpt4.tasks import extract_features as features
from minigpt4.tasks.image_text_pretrain import build_processor
from tests.training import COLOURS, picture


def make(config: str, *flags: str) -> int:
    """`minigpt4 features` of three crops, on the CPU."""
    return cli.main(["features", "--cfg-path", config, "--device", "cpu", "--crops", "3", *flags])


@pytest.fixture
def laid(lay_published, tmp_path):
    """A config whose list of five pictures has features, three crops each, and of two more for validation."""
    (tmp_path / "photos").mkdir()
    rows = []
    for i in range(7):
        colour = list(COLOURS)[i % 4]
        picture(colour, i).save(tmp_path / "photos" / f"{i}.png")
        rows.append({"image": f"{i}.png", "captions": [f"a {colour} ball"], "split": "val" if i > 4 else "train"})
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    published = lay_published(tmp_path / "published")
    info = {"storage": str(tmp_path / "photos.jsonl"), "splits": ["train"], "features": str(tmp_path / "f/train.npy")}
    size = {"image_size": published["image_size"]}
    dataset = {
        "builder": "captioned_photos",
        "build_info": info,
        "valid_info": {**info, "splits": ["val"], "features": str(tmp_path / "f/val.npy")},
        "vis_processor": {"train": {"name": "blip2_image_train", **size}, "eval": {"name": "blip2_image_eval", **size}},
        "text_processor": {"train": {"name": "plain_text"}},
    }
    run = {"output_dir": str(tmp_path / "out"), "num_workers": 0, "device": "cpu", "batch_size_train": 2}
    model = {**published, "qformer_kwargs": vars(published["qformer_kwargs"]), "ckpt": None, "freeze_vit": True}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": model, "datasets": {"photos": dataset}, "run": run}))
    return str(file)


def test_features_stand_in_for_pictures(laid, tmp_path, tiny_model, capsys):
    assert make(laid, "--batch", "2") == 0
    out = capsys.readouterr().out
    size = np.load(tmp_path / "f/train.npy").nbytes / 1e6
    assert f"build_info.features: {tmp_path}/f/train.npy, 5 pictures x 3 crops, {size:.0f} MB\n" in out
    config = load_config(laid, mode="train")
    task = ImageTextPretrain(config)
    whole = build_processor(config.datasets["photos"].vis_processor.eval)
    (batch,) = task.validation_batches(0, 1)
    order = [int(captions == "a blue ball") for captions in batch["text_input"]]  # pictures 5 (green) and 6 (blue)
    images = torch.stack([whole(read_image_file(tmp_path / "photos" / f"{5 + i}.png")) for i in order])
    with torch.no_grad():
        seen, kept = tiny_model.encode_img(images), tiny_model.encode_img(batch["image"])
    assert batch["image"].ndim == 3
    assert (seen - kept).abs().max() < 2e-3 * seen.abs().max()  # kept in half precision
    assert (seen[0] - seen[1]).abs().max() > 1e-2 * seen.abs().max()

    table = np.load(tmp_path / "f/train.npy")
    assert len(np.unique(table.reshape(15, -1)[:, :50], axis=0)) == 15  # every crop is another
    drawn = [task.sources["photos"].decode(task.sources["photos"].pairs[0])["image"] for _ in range(20)]
    assert {next(c for c in range(3) if torch.equal(d, torch.tensor(table[0, c]).float())) for d in drawn} == {0, 1, 2}

    (tmp_path / "other.pth").touch()
    other = ["--options", f"model.ckpt={tmp_path / 'other.pth'}"]  # features do not depend on it
    assert cli.main(["features", "--cfg-path", laid, "--device", "cpu", *other]) == 0  # of as many crops as there are
    said = "is there, made of these pictures by this ViT (no other weights count); delete it to make it anew"
    assert capsys.readouterr().out.count(said) == 2


def test_features_go_on_where_they_stopped(laid, tmp_path, monkeypatch):
    make(laid, "--batch", "1")
    whole = np.load(tmp_path / "f/train.npy")
    for file in (tmp_path / "f").iterdir():
        file.unlink()
    encode, calls = features.encode_tokens, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(features, "SAVE_EVERY", 2)
    monkeypatch.setattr(features, "encode_tokens", dies)
    assert make(laid, "--batch", "1") == 130
    assert not (tmp_path / "f/train.npy").exists()
    calls[:] = [1] * 10
    assert make(laid, "--batch", "1") == 0
    assert len(calls) == 10 + 3 + 2  # two were done, and noted
    assert np.array_equal(np.load(tmp_path / "f/train.npy"), whole)


def test_features_of_something_else_are_refused(laid, tmp_path, capsys):
    with pytest.raises(DataError, match=r"build_info\.features: .*train\.npy cannot be read.*minigpt4 features"):
        ImageTextPretrain(load_config(laid, mode="show"))
    make(laid)
    for options, what in (
        (["datasets.photos.build_info.splits=[val]"], "images"),
        (["datasets.photos.vis_processor.train.min_scale=0.9"], "vis_processor"),
        (["datasets.photos.vis_processor.eval.mean=[0.1,0.1,0.1]"], "vis_processor"),
        (["model.vit_precision=bf16"], "vit_precision"),
    ):
        with pytest.raises(DataError, match=f"made with other {what}; `minigpt4"):
            ImageTextPretrain(load_config(laid, options, mode="train"))
    capsys.readouterr()
    assert cli.main(["features", "--cfg-path", laid, "--options", "model.freeze_vit=False"]) == 1
    assert "model.freeze_vit" in capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del config["datasets"]["photos"]["vis_processor"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="made with other vis_processor"):  # the default one
        ImageTextPretrain(load_config(str(tmp_path / "bare.yaml"), mode="show"))
    picture("red", 5).save(tmp_path / "photos" / "3.png")
    with pytest.raises(DataError, match="made with other images"):
        ImageTextPretrain(load_config(laid, mode="train"))
    (tmp_path / "photos" / "3.png").unlink()
    with pytest.raises(DataError, match=r"photos\.build_info\.features: .*3\.png: No such file"):
        ImageTextPretrain(load_config(laid, mode="train"))


def test_a_table_begun_anew_forgets_what_was_done_of_another(laid, tmp_path, monkeypatch):
    """A is stopped, then B; what A is gone on with must not be B's."""
    make(laid, "--batch", "1")
    whole = np.load(tmp_path / "f/train.npy")
    shutil.rmtree(tmp_path / "f")
    encode, left = features.encode_tokens, []

    def dies(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return encode(*arguments)

    monkeypatch.setattr(features, "SAVE_EVERY", 3)
    monkeypatch.setattr(features, "encode_tokens", dies)
    other = ["--options", "datasets.photos.vis_processor.train.min_scale=0.9"]
    for batches, options in ((3, []), (1, other), (99, [])):  # B ends before it notes anything
        left[:] = [1] * batches
        make(laid, "--batch", "1", *options)
    assert np.array_equal(np.load(tmp_path / "f/train.npy"), whole)


def test_a_picture_that_cannot_be_read_is_a_bad_sample(laid, tmp_path, capsys):
    (tmp_path / "photos" / "3.png").write_bytes(b"no picture")
    assert make(laid) == 0
    assert "1 cannot be read, bad samples in training: photos/3.png (BrokenImage" in capsys.readouterr().out
    assert not np.load(tmp_path / "f/train.npy")[3].any()
    source = ImageTextPretrain(load_config(laid, mode="train")).sources["photos"]
    for i, pair in enumerate(source.pairs):
        if i != 3:
            assert source.decode(pair)["image"].any()
    with pytest.raises(Unreadable, match=r"3\.png: when its features were made: BrokenImage"):
        source.decode(source.pairs[3])

    for i in range(5):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"none at all")
    assert make(laid) == 1
    assert "none of the first 5 pictures can be read, e.g. photos/0.png" in capsys.readouterr().err


def test_validation_sees_whole_pictures_and_a_pickle_holds_no_features(laid, tmp_path):
    make(laid)
    assert np.load(tmp_path / "f/val.npy").shape[1] == 1
    train = tmp_path / "f/train.npy"
    of_training = ["datasets.photos.valid_info.splits=[train]", f"datasets.photos.valid_info.features={train}"]
    source = ImageTextPretrain(load_config(laid, of_training, mode="train")).valid_sources["photos"]
    table = np.load(train)
    whole = torch.tensor(table[1, 0]).float()
    assert all(torch.equal(source.decode(source.pairs[1])["image"], whole) for _ in range(8))
    kept = pickle.dumps(source)
    assert len(kept) < table.nbytes / 2
    assert torch.equal(pickle.loads(kept).decode(source.pairs[1])["image"], whole)


def test_what_a_config_says_of_features_is_checked_at_once(laid, tmp_path, capsys, monkeypatch):
    def problems(*options: str, mode: str = "train") -> list[str]:
        return [p for p in read_config(laid, options, mode=mode)[1] if "feature" in p]

    missing, of_validation = problems()
    assert missing.startswith("datasets.photos.build_info.features: ")
    assert of_validation.startswith("datasets.photos.valid_info.features: ")
    assert f"`minigpt4 features --cfg-path {laid}` makes it" in missing
    assert all("model.freeze_vit is False" in p for p in problems("model.freeze_vit=False"))
    key = "datasets.photos.build_info.features"
    for options, said in (
        ([f"{key}=a.bin"], f"{key}: 'a.bin' should end in .npy"),
        ([f"{key}={tmp_path / 'f/val.npy'}"], f"is also {key}, of other images, crops; write a file of its own"),
        (["model.vit_ckpt=/nowhere/vit.pth"], "model.vit_ckpt: /nowhere/vit.pth: No such file"),
    ):
        assert cli.main(["features", "--cfg-path", laid, "--options", *options]) == 1
        assert said in capsys.readouterr().err
    for flags, said in (
        (["--batch", "0"], "--batch: 0 should be at least 1"),
        (["--crops", "0"], "--crops: 0 should be at least 1"),
        (["--datasets", "photo"], "--datasets photo: the config has photos"),
    ):
        assert cli.main(["features", "--cfg-path", laid, *flags]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: shutil._ntuple_diskusage(1, 1, 0))
    assert make(laid) == 1
    assert "GB are free there" in capsys.readouterr().err


def test_facts_and_tables_that_are_none_are_told(laid, tmp_path):
    make(laid)
    table = np.load(tmp_path / "f/train.npy")
    (tmp_path / "f/train.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.npy cannot be read"):
        ImageTextPretrain(load_config(laid, mode="train"))
    (tmp_path / "f/train.json").write_text("[1]")
    np.save(tmp_path / "f/train.npy", table)
    with pytest.raises(DataError, match=r"train\.npy was made with other vit_model, "):
        ImageTextPretrain(load_config(laid, mode="train"))
