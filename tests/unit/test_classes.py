"""Class names as samples: features moved until a frozen classifier is sure of a class."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.errors import CheckpointError, DataError
from minigpt4.datasets.features import FeatureTable
from recipes.tiny import classes
from recipes.tiny.classes import ClassNames, imagenet_names

TOKENS, WIDTH = 9, 64


@pytest.fixture
def pictures(tmp_path):
    """pictures(i) -> features of one of three pictures, two crops each, as EfficientNet-Lite's are: between 0 and 6,
    most of them 0."""
    pairs = [(tmp_path / f"{i}.png", "a thing") for i in range(3)]
    table = np.random.default_rng(0).normal(-1, 1, (3, 2, TOKENS, WIDTH)).clip(0, 6).astype(np.float16)
    np.save(tmp_path / "f.npy", table)
    (tmp_path / "f.json").write_text(json.dumps({"crops": 2}))
    features = FeatureTable(pairs, tmp_path / "f.npy", {})
    return lambda i: features(pairs[i][0])


@pytest.fixture
def classifier(tmp_path):
    weight = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"classifier.weight": weight, "classifier.bias": torch.zeros(1000)}, tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def test_names_are_the_classifiers():
    names = imagenet_names()
    assert len(names) == 1000 and names[0] == "tench" and names[291] == "lion" and names[967] == "espresso"


def test_moved_features_are_of_the_class_that_the_text_names(pictures, classifier, monkeypatch):
    monkeypatch.setattr(classes, "REAL", 0.0)
    source = ClassNames(classifier, WIDTH, draws=40)
    torch.manual_seed(0)
    named, sure = set(), []
    for _ in range(30):
        tokens, texts = source.sample(pictures(0), lambda: pictures(1))
        assert tokens.shape == (TOKENS, WIDTH) and tokens.min() >= 0 and tokens.max() <= 6
        p = source.probabilities(tokens)
        name = source.names[int(p.argmax())]
        said = sum(text in (f"a photo of a {name}", f"a photo of an {name}") for text in texts)
        assert len(texts) == 40 and said / 40 == pytest.approx(p.max().item(), abs=0.3)
        sure.append(p.max().item())
        named.add(name)
    assert len(named) > 25
    assert min(sure) > 0.45 and 0.6 < np.median(sure) < 0.98  # drawn between SURE's ends; the last step may overshoot


def test_real_features_are_named_as_likely_as_the_classifier_finds_it(pictures, classifier, monkeypatch):
    monkeypatch.setattr(classes, "REAL", 1.0)
    source = ClassNames(classifier, WIDTH)
    source.weight = 4 * source.weight[:2].repeat_interleave(500, 0)  # two groups of names
    torch.manual_seed(0)
    expected, found = [], []
    for _ in range(300):
        tokens, texts = source.sample(pictures(1), lambda: pictures(2))
        expected.append(float(source.probabilities(tokens)[:500].sum()))
        name = texts[0].split(" ", 4)[-1]
        found.append(source.names.index(name) < 500)
    assert len({round(e, 4) for e in expected}) > 100  # mixed of two pictures, each time otherwise
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.08)
    assert 0.1 < np.mean(expected) < 0.9


def test_what_does_not_fit_is_refused(tmp_path):
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"other\.safetensors has no classifier\.weight; write the file"):
        ClassNames(tmp_path / "other.safetensors", WIDTH)
    ten = {"classifier.weight": torch.zeros(10, WIDTH), "classifier.bias": torch.zeros(10)}
    save_file(ten, tmp_path / "ten.safetensors")
    with pytest.raises(DataError, match=r"is \(10, 64\).*should be \(1000, 64\)"):
        ClassNames(tmp_path / "ten.safetensors", WIDTH)
    with pytest.raises(CheckpointError, match="none"):
        ClassNames(tmp_path / "none.safetensors", WIDTH)
