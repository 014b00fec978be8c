"""`build_info.share`: which pictures of a list a run takes, and that its features stay those of the pictures."""

import json

import numpy as np
import pytest
import torch

from minigpt4.common.config import read_config
from minigpt4.common.errors import DataError
from minigpt4.common.schema import BuildInfo, Config, DatasetConfig, ModelConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.common.schema import RunConfig as Run
from minigpt4.datasets.features import made_from
from minigpt4.tasks import ImageTextPretrain
from tests.made import good, write_shard

PROCESSORS = {
    "vis_processor": ProcessorsConfig(train=ProcessorConfig(name="blip2_image_eval")),
    "text_processor": ProcessorsConfig(train=ProcessorConfig(name="plain_text")),
}


@pytest.fixture
def numbers(tmp_path):
    """numbers(share, seed=1, name="a", features=None, **info) -> the pictures that are left of n0.png ... n19.png, and
    the dataset's source."""
    rows = [{"image": f"n{i}.png", "captions": [f"number {i}"]} for i in range(20)]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vit.bin").write_bytes(b"a tower")
    (tmp_path / "photos").mkdir()
    for row in rows:
        (tmp_path / "photos" / row["image"]).touch()

    def make(share: float, seed: int = 1, name: str = "a", features: str | None = None, **more):
        storage = str(tmp_path / "photos.jsonl")
        info = BuildInfo(storage=storage, share=share, features=features, feature_crops=1, **more)
        valid = BuildInfo(storage=storage)
        dataset = DatasetConfig("captioned_photos", build_info=info, valid_info=valid, **PROCESSORS)
        model = ModelConfig(vit_ckpt=str(tmp_path / "vit.bin"))
        task = ImageTextPretrain(Config(model=model, datasets={name: dataset}, run=Run(seed=seed)))
        assert len(task.valid_sources[name]) == 20
        return [int(path.stem[1:]) for path, _ in task.sources[name].pairs], task.sources[name]

    return make


def test_a_share_is_drawn_by_seed_and_name_and_lies_within_a_larger_one(numbers):
    tenth, half = numbers(0.1)[0], numbers(0.5)[0]
    assert (len(tenth), len(half), len(numbers(0.01)[0])) == (2, 10, 1)
    assert half == sorted(half) == numbers(0.5)[0]
    assert set(tenth) < set(half)
    assert half != numbers(0.5, seed=2)[0]
    assert half != numbers(0.5, name="b")[0]
    assert numbers(1.0)[0] == list(range(20))


def test_the_pictures_that_are_left_keep_their_own_features(numbers, tmp_path):
    pairs, file = numbers(1.0)[1].pairs, tmp_path / "f.npy"
    np.save(file, np.arange(20, dtype=np.float16)[:, None, None, None])  # photo i: one crop, one token, one number i
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs, 1)
    file.with_suffix(".json").write_text(json.dumps(facts))
    left, source = numbers(0.3, features=str(file))
    samples = [source.decode(pair) for pair in source.pairs]
    assert len(left) == 6
    assert [int(sample["image"].item()) for sample in samples] == left
    assert [sample["text_input"] for sample in samples] == [[f"number {i}"] for i in left]


def test_a_sample_loses_whole_channels_others_at_each_draw(numbers, tmp_path):
    """Two tokens, a thousand channels, all 1: what is left is scaled to the same mean; the texts stay."""
    pairs, file = numbers(1.0)[1].pairs, tmp_path / "f.npy"
    np.save(file, np.ones((20, 1, 2, 1000), np.float16))
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs, 1)
    file.with_suffix(".json").write_text(json.dumps(facts))
    source = numbers(1.0, features=str(file), feature_dropout=0.6)[1]
    torch.manual_seed(0)
    first, second = (source.decode(source.pairs[3]) for _ in range(2))
    assert first["text_input"] == ["number 3"]
    assert torch.equal(first["image"][0], first["image"][1]) and not torch.equal(first["image"], second["image"])
    assert set(first["image"].unique().tolist()) == {0.0, 2.5}
    assert (first["image"] == 0).float().mean() == pytest.approx(0.6, abs=0.05)


def test_mixed_samples_have_the_pictures_and_texts_of_two(numbers, tmp_path):
    """Photo i's features are the number i, its text says it: a mixed sample lies between two of them, and its texts
    name each as often as it weighs."""
    pairs, file = numbers(1.0)[1].pairs, tmp_path / "f.npy"
    np.save(file, np.arange(20, dtype=np.float16)[:, None, None, None])
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs, 1)
    file.with_suffix(".json").write_text(json.dumps(facts))
    source = numbers(0.5, features=str(file), mixed=0.7)[1]
    kept = {int(path.stem[1:]) for path, _ in source.pairs}
    torch.manual_seed(0)
    alone, near = 0, []
    for _ in range(400):
        for path, texts in source.pairs[:1]:
            own = int(path.stem[1:])
            sample = source.decode((path, texts * 5))
            image = sample["image"].item()
            said = [int(text.removeprefix("number ")) for text in sample["text_input"]]
            assert len(said) == 5 and set(said) <= kept
            alone += image == own
            if (others := set(said) - {own}) and own in said:
                (other,) = others
                weight = (image - other) / (own - other)
                assert 0 <= weight <= 1
                near.append(weight - said.count(own) / 5)
    assert 400 * 0.3 < alone < 400 * 0.3 + 100  # some are mixed with themselves
    assert len(near) > 100 and abs(np.mean(near)) < 0.05


def test_shards_and_shares_that_are_none_are_refused(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [{"jpg": good("a dog")["png"], "json": b"{}"}])
    dataset = DatasetConfig("laion", build_info=BuildInfo(storage=shard, share=0.5), **PROCESSORS)
    with pytest.raises(DataError, match=r"datasets\.x\.build_info\.share: is for lists of pictures, not for laion"):
        ImageTextPretrain(Config(datasets={"x": dataset}))
    options = ["datasets.laion.build_info.share=0", "datasets.cc_sbu.build_info.share=1.5"]
    _, problems = read_config("train_configs/minigpt4_stage1_pretrain.yaml", options)
    assert sorted(p for p in problems if ".share" in p) == [
        "datasets.cc_sbu.build_info.share: 1.5 should be above 0 and at most 1",
        "datasets.laion.build_info.share: 0.0 should be above 0 and at most 1",
    ]
