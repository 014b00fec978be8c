"""The task of the small model's trainings: lists of pictures with all their captions, and what `extra` says of them."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from minigpt4.common.config_values import fill
from minigpt4.common.errors import DataError
from minigpt4.common.paths import resolve_path
from minigpt4.common.registry import TASKS
from minigpt4.common.schema import DatasetConfig, key
from minigpt4.datasets.image_text import ImageTextSource, folder_of_images, inside, read_json_lines
from minigpt4.datasets.stream import Source, seed_of
from minigpt4.tasks import ImageTextPretrain
from minigpt4.tasks.image_text_pretrain import add_config_key_to_errors

from .classes import ClassNames


@dataclass(frozen=True)
class Extra:
    """`datasets.<name>.extra`: how a training list is used. Validation takes all pictures as they are."""

    share: float = key(
        1.0, "fraction of the pictures to use, chosen by run.seed; a smaller one is a subset of a larger one",
        above=0, most=1,
    )  # fmt: skip
    mixed: float = key(
        0.0, "fraction of the samples that are two pictures laid over each other, with texts of both", least=0, most=1
    )
    feature_dropout: float = key(
        0.0, "with features: fraction of its channels that a sample loses, others each time", least=0, below=1
    )
    classifier: str | None = key(
        None, "with features: the ViT's file; a sample is then one of the classes that its classifier knows"
    )
    questions: str | None = key(
        None, "a file of questions.py; a sample is then a picture of the list with the questions about it"
    )
    names: int = key(1, "with classifier: how many names are drawn for a sample, as so many texts", least=1)


def read_extra(extra: dict, where: str, has_features: bool) -> Extra:
    """The keys of a dataset's `extra`, which lies at the key `where` of the config.

    Raises:
        DataError: a key is unknown, its value is wrong, or it needs build_info.features.
    """
    problems: list[str] = []
    found = fill(Extra, extra, f"{where}.", problems)
    for name in ("feature_dropout", "classifier"):
        if getattr(found, name) and not has_features:
            problems.append(f"{where}.{name}: needs features; write build_info.features, or leave it out")
    if problems:
        raise DataError("\n  ".join(problems))
    return found


class TinySource(ImageTextSource):
    """A list of pictures. A sample's `text_input` is the list of all its captions.

    Args:
        plain: the list as the core reads it.
        extra: see there.
        classes: makes samples of classes instead of captions, where `extra` names a classifier.
    """

    def __init__(self, plain: ImageTextSource, extra: Extra, classes: ClassNames | None = None):
        super().__init__(plain.pairs, plain.vis_processor, plain.text_processor, plain.features)
        self.extra, self.classes = extra, classes

    def decode(self, raw: tuple[Path, str | list[str]]) -> dict:
        """See `Source`."""
        sample, extra = self.unmixed(raw), self.extra
        if not (extra.mixed or extra.feature_dropout):
            return sample
        if torch.rand(()) < extra.mixed:
            sample = self.mix(sample)
        if extra.feature_dropout:
            sample["image"] = F.dropout1d(sample["image"].mT, extra.feature_dropout).mT
        return sample

    def unmixed(self, raw: tuple[Path, str | list[str]]) -> dict:
        """A picture with its captions, or one of the classifier's classes."""
        if not self.classes:
            captions = raw[1] if self.extra.questions else self.captions(raw)
            return {"image": self.picture(raw[0]), "text_input": captions}
        tokens, texts = self.classes.sample(self.picture(raw[0]), lambda: self.picture(self.another()[0]))
        return {"image": tokens, "text_input": [self.text_processor(text) for text in texts]}

    def mix(self, one: dict) -> dict:
        """The sample with another of the list laid over it, each with a random weight; each text is the one's or the
        other's, by the same weight. Source: mixup (arXiv:1710.09412)."""
        other = self.unmixed(self.another())
        weight = torch.rand(())
        texts = zip(one["text_input"], itertools.cycle(other["text_input"]))  # cycled: the other may have fewer texts
        return {
            "image": torch.lerp(other["image"], one["image"], weight),
            "text_input": [mine if torch.rand(()) < weight else its for mine, its in texts],
        }

    def another(self) -> tuple[Path, str | list[str]]:
        """A pair that is drawn."""
        return self.pairs[int(torch.randint(len(self.pairs), ()))]


def choose_share(pairs: Sequence, share: float, seed: int, name: str) -> list:
    """`share` of the pairs of the dataset `name`, at least one, in their order. A smaller share of the same seed lies
    within a larger one."""
    order = list(range(len(pairs)))
    random.Random(seed_of(seed, "share", name)).shuffle(order)
    return [pairs[i] for i in sorted(order[: max(1, round(share * len(pairs)))])]


def with_questions(pairs: Sequence[tuple[Path, list[str]]], file: Path) -> list:
    """The pictures that the file asks about, with the questions and answers instead of the captions."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for _, row in read_json_lines(file):
        asked.setdefault(row["image"], []).append((row["question"], row["answer_trained_on"]))
    folder = folder_of_images(file, None)
    found = {inside(folder, image, file): texts for image, texts in asked.items()}
    return [(path, found[path]) for path, _ in pairs if path in found]


@TASKS.register("tiny_pretrain")
class TinyPretrain(ImageTextPretrain):
    """image_text_pretrain on lists of pictures, with the keys of `Extra` in each dataset's `extra`."""

    def source_of(self, name: str, dataset: DatasetConfig, split: str, where: str) -> Source:
        """See `ImageTextPretrain.source_of`."""
        source = super().source_of(name, dataset, split, where)
        if not isinstance(source, ImageTextSource):
            if dataset.extra:
                raise DataError(f"datasets.{name}.extra: is for lists of pictures, not for {dataset.builder or name}")
            return source
        if split != "train":
            return TinySource(source, Extra())
        extra = read_extra(dataset.extra, f"datasets.{name}.extra", bool(source.features))
        classes = None
        if extra.classifier:
            with add_config_key_to_errors(f"datasets.{name}.extra.classifier"):
                classes = ClassNames(Path(resolve_path(extra.classifier)), source.features.shape[-1], extra.names)
        # The features are of the whole list, so it is cut after they were held against it.
        source.pairs = choose_share(source.pairs, extra.share, self.config.run.seed, name)
        if extra.questions:
            source.pairs = with_questions(source.pairs, Path(resolve_path(extra.questions)))
        return TinySource(source, extra, classes)
