"""The small model's samples: `extra.share`, mixed pictures, channels that are lost, classes; and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.errors import DataError
from minigpt4.common.schema import BuildInfo, Config, DatasetConfig, ModelConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.common.schema import RunConfig as Run
from minigpt4.datasets.features import made_from
from recipes.tiny.task import TinyPretrain
from tests.made import good, write_shard

PROCESSORS = {
    "vis_processor": ProcessorsConfig(train=ProcessorConfig(name="blip2_image_eval")),
    "text_processor": ProcessorsConfig(train=ProcessorConfig(name="plain_text")),
}


@pytest.fixture
def numbers(tmp_path):
    """numbers(share, seed=1, name="a", features=None, **extra) -> the pictures that are left of n0.png ... n19.png, and
    the dataset's source."""
    rows = [{"image": f"n{i}.png", "captions": [f"number {i}"]} for i in range(20)]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vit.bin").write_bytes(b"a tower")
    (tmp_path / "photos").mkdir()
    for row in rows:
        (tmp_path / "photos" / row["image"]).touch()

    def make(share: float, seed: int = 1, name: str = "a", features: str | None = None, **more):
        storage = str(tmp_path / "photos.jsonl")
        info, valid = BuildInfo(storage=storage, features=features), BuildInfo(storage=storage)
        extra = {"share": share, **more}
        dataset = DatasetConfig("captioned_photos", build_info=info, valid_info=valid, extra=extra, **PROCESSORS)
        model = ModelConfig(vit_ckpt=str(tmp_path / "vit.bin"))
        task = TinyPretrain(Config(model=model, datasets={name: dataset}, run=Run(seed=seed)))
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
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs)
    file.with_suffix(".json").write_text(json.dumps({**facts, "crops": 1}))
    left, source = numbers(0.3, features=str(file))
    samples = [source.decode(pair) for pair in source.pairs]
    assert len(left) == 6
    assert [int(sample["image"].item()) for sample in samples] == left
    assert [sample["text_input"] for sample in samples] == [[f"number {i}"] for i in left]


def test_a_sample_loses_whole_channels_others_at_each_draw(numbers, tmp_path):
    """Two tokens, a thousand channels, all 1: what is left is scaled to the same mean; the texts stay."""
    pairs, file = numbers(1.0)[1].pairs, tmp_path / "f.npy"
    np.save(file, np.ones((20, 1, 2, 1000), np.float16))
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs)
    file.with_suffix(".json").write_text(json.dumps({**facts, "crops": 1}))
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
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs)
    file.with_suffix(".json").write_text(json.dumps({**facts, "crops": 1}))
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


def test_a_sample_is_of_a_class_where_a_classifier_is_named(numbers, tmp_path):
    file, pairs = tmp_path / "f.npy", numbers(1.0)[1].pairs
    np.save(file, np.ones((20, 1, 2, 8), np.float16))
    facts = made_from(ModelConfig(vit_ckpt=str(tmp_path / "vit.bin")), PROCESSORS["vis_processor"], pairs)
    file.with_suffix(".json").write_text(json.dumps({**facts, "crops": 1}))
    bias = torch.zeros(1000).index_fill(0, torch.tensor([291]), 99.0)  # sure of the lion, whatever it sees
    save_file({"classifier.weight": torch.zeros(1000, 8), "classifier.bias": bias}, tmp_path / "vit.safetensors")
    source = numbers(1.0, features=str(file), classifier=str(tmp_path / "vit.safetensors"), names=3)[1]
    sample = source.decode(source.pairs[0])
    assert sample["text_input"] == ["a photo of a lion"] * 3 and sample["image"].shape == (2, 8)


def test_shards_have_no_extra_keys(tmp_path):
    shard = write_shard(tmp_path / "0.tar", [{"jpg": good("a dog")["png"], "json": b"{}"}])
    dataset = DatasetConfig("laion", build_info=BuildInfo(storage=shard), extra={"share": 0.5}, **PROCESSORS)
    with pytest.raises(DataError, match=r"datasets\.x\.extra: is for lists of pictures, not for laion"):
        TinyPretrain(Config(datasets={"x": dataset}))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"share": 0}, "share: 0.0 should be above 0 and at most 1"),
        ({"share": 1.5}, "share: 1.5 should be above 0 and at most 1"),
        ({"mixed": 2}, "mixed: 2.0 should be at least 0 and at most 1"),
        ({"mixed": "all"}, "mixed: 'all' is a text; it should be a number"),
        ({"feature_dropout": 1.0}, "feature_dropout: 1.0 should be at least 0 and below 1"),
        ({"feature_dropout": 0.3}, "feature_dropout: needs features; write build_info.features, or leave it out"),
        ({"classifier": "vit.pth"}, "classifier: needs features; write build_info.features, or leave it out"),
        ({"names": 0}, "names: 0 should be at least 1"),
        ({"mixd": 1}, "mixd: unknown key; did you mean 'mixed'?"),
    ],
)
def test_what_extra_says_is_checked(numbers, extra, said):
    with pytest.raises(DataError) as error:
        numbers(**{"share": 1.0, **extra})
    assert f"datasets.a.extra.{said}" in str(error.value)
