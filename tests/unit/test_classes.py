"""Class names as samples: features moved until a frozen classifier is sure of a class."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.errors import CheckpointError, DataError
from minigpt4.datasets import classes
from minigpt4.datasets.classes import ClassSource, imagenet_names
from minigpt4.datasets.features import FeatureSource
from minigpt4.datasets.image_text import ImageTextSource
from minigpt4.processors.text_processors import PlainText

TOKENS, WIDTH = 9, 64


@pytest.fixture
def features(tmp_path):
    """Three pictures' features, two crops each, as EfficientNet-Lite's are: between 0 and 6, most of them 0."""
    pairs = [(tmp_path / f"{i}.png", [f"a photo of a thing {i}"]) for i in range(3)]
    table = np.random.default_rng(0).normal(-1, 1, (3, 2, TOKENS, WIDTH)).clip(0, 6).astype(np.float16)
    np.save(tmp_path / "f.npy", table)
    (tmp_path / "f.json").write_text(json.dumps({"crops": 2}))
    return FeatureSource(ImageTextSource(pairs, None, PlainText()), tmp_path / "f.npy", {"crops": 2})


@pytest.fixture
def classifier(tmp_path):
    weight = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"classifier.weight": weight, "classifier.bias": torch.zeros(1000)}, tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def test_names_are_the_classifiers():
    names = imagenet_names()
    assert len(names) == 1000 and names[0] == "tench" and names[291] == "lion" and names[967] == "espresso"


def test_moved_features_are_of_the_class_that_the_text_names(features, classifier, monkeypatch):
    monkeypatch.setattr(classes, "REAL", 0.0)
    source = ClassSource(features, classifier, names=40)
    torch.manual_seed(0)
    named, sure = set(), []
    for _ in range(30):
        sample = source.decode(source.pairs[0])
        texts, tokens = sample["text_input"], sample["image"]
        assert tokens.shape == (TOKENS, WIDTH) and tokens.min() >= 0 and tokens.max() <= 6
        p = source.probabilities(tokens)
        name = source.names[int(p.argmax())]
        said = sum(text in (f"a photo of a {name}", f"a photo of an {name}") for text in texts)
        assert len(texts) == 40 and said / 40 == pytest.approx(p.max().item(), abs=0.3)
        sure.append(p.max().item())
        named.add(name)
    assert len(named) > 25
    assert min(sure) > 0.45 and 0.6 < np.median(sure) < 0.98  # drawn between SURE's ends; the last step may overshoot


def test_real_features_are_named_as_likely_as_the_classifier_finds_it(features, classifier, monkeypatch):
    monkeypatch.setattr(classes, "REAL", 1.0)
    source = ClassSource(features, classifier)
    source.weight = 4 * source.weight[:2].repeat_interleave(500, 0)  # two groups of names
    torch.manual_seed(0)
    expected, found = [], []
    for _ in range(300):
        sample = source.decode(source.pairs[1])
        expected.append(float(source.probabilities(sample["image"])[:500].sum()))
        name = sample["text_input"][0].split(" ", 4)[-1]
        found.append(source.names.index(name) < 500)
    assert len({round(e, 4) for e in expected}) > 100  # mixed of two pictures, each time otherwise
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.08)
    assert 0.1 < np.mean(expected) < 0.9


def test_what_does_not_fit_is_refused(features, classifier, tmp_path):
    with pytest.raises(DataError, match=r"write build_info\.features"):
        ClassSource(ImageTextSource([], None, None), classifier)
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors has no classifier\.weight; write the file"):
        ClassSource(features, tmp_path / "other.safetensors")
    ten = {"classifier.weight": torch.zeros(10, WIDTH), "classifier.bias": torch.zeros(10)}
    save_file(ten, tmp_path / "ten.safetensors")
    with pytest.raises(DataError, match=r"is \(10, 64\).*should be \(1000, 64\)"):
        ClassSource(features, tmp_path / "ten.safetensors")
    with pytest.raises(CheckpointError, match="none"):
        ClassSource(features, tmp_path / "none.safetensors")
