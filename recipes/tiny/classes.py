"""The names that a frozen vision tower's own classifier knows, as training samples: features, "a photo of a NAME".

Half of them are the features of pictures, two of them mixed, with the name that the classifier finds; half are moved
along a class's weights until the classifier is nearly sure of that class. So a Q-Former from scratch learns a thousand
names of which the lists have one photo each. It is distillation of a head that MiniGPT-4 cuts off.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minigpt4.common.checkpoint import read_state
from minigpt4.common.errors import DataError
from recipes.english import article

REAL = 0.5  # share of samples whose features are those of pictures
RELU6 = 6.0  # EfficientNet-Lite's last activation: no feature is larger
LARGEST, HALVINGS = 60.0, 8  # how far features are moved at most; the step is found by bisection
SHARE_OF_TOKENS = (0.3, 1.0)  # a thing may fill a part of the picture
SURE = (0.5, 0.97)  # the probability that the classifier is to give the class


def imagenet_names() -> list[str]:
    """ImageNet's thousand classes in the classifier's order, each by the first of its names."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())]


class ClassNames:
    """Makes samples of the classes that a classifier knows.

    Args:
        classifier: file with `classifier.weight` (1000, D_vit) and `classifier.bias` of ImageNet, applied to the
            mean of the tokens (EfficientNet-Lite).
        width: D_vit of the features.
        draws: how many names a sample gets, each drawn by the classifier's probabilities.
    Raises:
        DataError: the file has no classifier, or one that does not fit the features.
        CheckpointError: it cannot be read.
    """

    def __init__(self, classifier: Path, width: int, draws: int = 1):
        self.draws, self.names = draws, imagenet_names()
        try:
            state = read_state(str(classifier))
            self.weight, self.bias = (state[f"classifier.{part}"].float() for part in ("weight", "bias"))
        except KeyError as error:
            raise DataError(f"{classifier} has no {error.args[0]}; write the file of model.vit_ckpt") from None
        expected = (len(self.names), width)
        if self.weight.shape != expected:
            raise DataError(
                f"{classifier}: classifier.weight is {tuple(self.weight.shape)}, for these features and ImageNet's "
                f"classes it should be {expected}; write the file of model.vit_ckpt"
            )
        self.direction = self.weight - self.weight.mean(0)

    def sample(self, tokens: Tensor, another: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
        """A picture's features (N, D_vit) -> features of a class (N, D_vit), and captions that name it.

        Args:
            another: gives the features of another picture.
        """
        if torch.rand(()) < REAL:
            tokens = self.beside(tokens, another())
        else:
            tokens = self.toward(tokens, int(torch.randint(len(self.names), ())))
        drawn = self.probabilities(tokens).multinomial(self.draws, replacement=True).tolist()
        return tokens, [f"a photo of {article(self.names[i])} {self.names[i]}" for i in drawn]

    def probabilities(self, tokens: Tensor) -> Tensor:
        """tokens (N, D_vit) -> the probability of each class by their mean (classes,)"""
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
