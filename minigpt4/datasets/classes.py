"""The names that a frozen vision tower's own classifier knows, as training samples: features, "a photo of a NAME".

Half of them are the features of pictures, two of them mixed, with the name that the classifier finds; half are moved
along a class's weights until it is as good as sure of that class. So a Q-Former from scratch learns a thousand names of
which the lists have one photo each. It is distillation, of a head that MiniGPT-4 cuts off.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from ..common.checkpoint import read_state
from ..common.english import article
from ..common.errors import DataError
from .features import FeatureSource
from .image_text import ImageTextSource
from .stream import Source

REAL = 0.5  # share of samples whose features are those of pictures
RELU6 = 6.0  # EfficientNet-Lite's last activation: no feature is larger
LARGEST, HALVINGS = 60.0, 8  # how far features are moved at most; the step is found by bisection
SHARE_OF_TOKENS = (0.3, 1.0)  # a thing may fill a part of the picture
SURE = (0.5, 0.97)  # how sure the classifier is to be


def imagenet_names() -> list[str]:
    """ImageNet's thousand classes in the classifier's order, each by the first of its names."""
    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())]


class ClassSource(ImageTextSource):
    """The list of its features, but a sample is of a class: features that are drawn, "a photo of a NAME".

    Args:
        features: what samples begin with; only its features count, not its texts.
        names: how many names a sample gets, each drawn by the classifier's probabilities.
        classifier: file with `classifier.weight` (1000, D_vit) and `classifier.bias` of ImageNet, applied to the
            mean of the tokens (EfficientNet-Lite).
    Raises:
        DataError: there are no features; the file has no classifier, or one that does not fit them.
        CheckpointError: it cannot be read.
    """

    def __init__(self, features: Source, classifier: Path, names: int = 1):
        if not isinstance(features, FeatureSource):
            raise DataError("needs features beside it; write build_info.features")
        super().__init__(features.pairs, features.vis_processor, features.text_processor)
        self.features, self.draws = features, names
        try:
            state = read_state(str(classifier))
            self.weight, self.bias = (state[f"classifier.{part}"].float() for part in ("weight", "bias"))
        except KeyError as error:
            raise DataError(f"{classifier} has no {error.args[0]}; write the file of model.vit_ckpt") from None
        self.names = imagenet_names()
        expected = (len(self.names), features.features.shape[-1])
        if self.weight.shape != expected:
            raise DataError(
                f"{classifier}: classifier.weight is {tuple(self.weight.shape)}, for these features and ImageNet's "
                f"classes it should be {expected}; write the file of model.vit_ckpt"
            )
        self.direction = self.weight - self.weight.mean(0)

    def decode(self, raw: tuple[Path, str | Sequence[str]]) -> dict:
        """See `Source`. Half of the samples are features of pictures; all are named by the classifier."""
        tokens = self.picture(raw[0])
        if torch.rand(()) < REAL:
            tokens = self.beside(tokens, self.picture(self.pairs[int(torch.randint(len(self.pairs), ()))][0]))
        else:
            tokens = self.toward(tokens, int(torch.randint(len(self.names), ())))
        drawn = self.probabilities(tokens).multinomial(self.draws, replacement=True).tolist()
        names = [self.names[i] for i in drawn]
        return {"image": tokens, "text_input": [self.text_processor(f"a photo of {article(n)} {n}") for n in names]}

    def picture(self, path: Path) -> Tensor:
        """See `ImageTextSource`."""
        return self.features.picture(path)

    def probabilities(self, tokens: Tensor) -> Tensor:
        """tokens (N, D_vit) -> what the classifier makes of their mean (classes,)"""
        return (self.weight @ tokens.mean(0) + self.bias).softmax(0)

    def beside(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(N, D_vit) of two pictures: some tokens of one, or none, in the place of the other's."""
        return torch.where(torch.rand(len(tokens), 1) < torch.rand(()), tokens, others)

    def toward(self, tokens: Tensor, chosen: int) -> Tensor:
        """tokens (N, D_vit), faded by a drawn factor, some of them moved toward the class: (N, D_vit)."""
        share, sure = (low + (high - low) * float(torch.rand(())) for low, high in (SHARE_OF_TOKENS, SURE))
        tokens = tokens * torch.rand(())
        moved = (torch.rand(len(tokens), 1) < share) * self.direction[chosen]
        low, high = 0.0, LARGEST
        for _ in range(HALVINGS):
            step = (low + high) / 2
            if self.probabilities((tokens + step * moved).clamp(0, RELU6))[chosen] < sure:
                low = step
            else:
                high = step
        return (tokens + high * moved).clamp(0, RELU6)
