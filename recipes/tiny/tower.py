"""The vision tower's last blocks learn which words people use of a picture, before the tower is frozen for good.

BLIP-2's ViT was trained with captions too before it was frozen. EfficientNet-Lite knows a thousand names and no
scenes. So that it forgets none of the names, its own classifier's answers are kept by distillation.
"""

import copy

import torch
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt4.common.checkpoint import load_exact, named_tensors, read_state
from minigpt4.common.paths import read_text, resolve_path
from minigpt4.common.precision import fast_half_dtype
from minigpt4.common.registry import MODELS

from .captions import texts_of
from .photos import WORD

OPEN = ("blocks.4", "blocks.5", "blocks.6", "conv_head", "bn2", "classifier")  # what is trained of the tower,
FROZEN = ".conv_dw."  # but for the depthwise convolutions: few weights, and their gradient takes longer than all else
HEAD_PACE = 10  # the head of words starts from nothing, so it learns so many times as fast
KEEP = 0.3  # the weight of the classifier's old answers


@MODELS.register("caption_tower")
class CaptionTower(nn.Module):
    """An EfficientNet with its classifier, and a head that tells the words of the captions.

    `model.extra`: `words`, a file with a word a line, the commonest first; `count`, how many of them are told.
    """

    def __init__(self, config, device="cpu", **_):
        super().__init__()
        self.config = config
        self.visual_encoder = create_model(config.vit_model)
        load_exact(named_tensors(self.visual_encoder), read_state(config.vit_ckpt), config.vit_ckpt)
        for name, parameter in self.visual_encoder.named_parameters():
            parameter.requires_grad_(name.startswith(OPEN) and FROZEN not in name)
        words = read_text(resolve_path(config.extra["words"])).split()[: config.extra.get("count", 1500)]
        self.column = {word: column for column, word in enumerate(words)}
        self.head = nn.Linear(2 * self.visual_encoder.num_features, len(words))
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, -5 / HEAD_PACE)  # most words are not said
        self.teacher = copy.deepcopy(_late(self.visual_encoder)).requires_grad_(False)
        self.to(device, memory_format=torch.channels_last).train()

    def train(self, mode: bool = True) -> "CaptionTower":
        """Batch-norm statistics stay ImageNet's: a batch of photos with captions is too small for new ones."""
        super().train(mode)
        self.visual_encoder.eval()
        self.teacher.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def trained_tensors(self) -> dict[str, Tensor]:
        """What is trained, under the names of MiniGPT-4's files where it has them."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.trained_tensors().items()}

    def build_batch(self, samples: dict) -> dict[str, Tensor]:
        """words (B, V): the share of a row's captions that have each word; known (B, 1): whether it has any."""
        rows = texts_of(samples)
        words = torch.zeros(len(rows), len(self.column))
        for row, captions in enumerate(rows):
            for caption in captions:
                for word in set(WORD.findall(caption.lower())) & self.column.keys():
                    words[row, self.column[word]] += 1 / len(captions)
        return {"image": samples["image"], "words": words, "known": words.amax(1, keepdim=True).ceil()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of each word, summed over the words, and of the names: {"loss": scalar}."""
        image = batch["image"].to(self.device, memory_format=torch.channels_last)
        half = fast_half_dtype(image.device)
        with torch.autocast(image.device.type, half or torch.bfloat16, enabled=half is not None):
            with torch.no_grad():
                early = _early(self.visual_encoder)(image)
                names = self.visual_encoder_names(self.teacher, early)[1]
            tokens, told = self.visual_encoder_names(_late(self.visual_encoder), early)
        seen = torch.cat([tokens.mean((2, 3)), tokens.amax((2, 3))], dim=1).float()
        logits = HEAD_PACE * self.head(seen)
        words = F.binary_cross_entropy_with_logits(logits, batch["words"].to(self.device), reduction="none")
        forgot = F.kl_div(told.float().log_softmax(1), names.float().softmax(1), reduction="batchmean")
        return {"loss": (words * batch["known"].to(self.device)).sum(1).mean() + KEEP * forgot}

    @staticmethod
    def visual_encoder_names(late: nn.Module, early: Tensor) -> tuple[Tensor, Tensor]:
        """Early features -> feature map (B, D_vit, H, W), and the classifier's logits (B, 1000)."""
        *convolutions, classifier = late
        for part in convolutions:
            early = part(early)
        return early, classifier(early.mean((2, 3)))


def _early(tower: nn.Module) -> nn.Sequential:
    return nn.Sequential(tower.conv_stem, tower.bn1, *tower.blocks[:4])


def _late(tower: nn.Module) -> nn.Sequential:
    return nn.Sequential(*tower.blocks[4:], tower.conv_head, tower.bn2, tower.classifier)
