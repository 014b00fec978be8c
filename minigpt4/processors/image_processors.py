"""Image file -> PIL image of any mode -> normalized float tensor (3, H, W)."""

import os
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from ..common.registry import PROCESSORS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# Whatever else PIL knows stays closed: some of its readers start other programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # where PIL begins to warn: 256 MiB as RGB. A file of kilobytes can ask for any size
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # it is refused here


class HugeImage(ValueError):
    """More than MAX_PIXELS pixels."""


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """An image of one of FORMATS; nothing is decoded yet. Of an animation it is the first frame.

    Raises:
        HugeImage: by the size in its header.
        OSError, ...: what PIL raises; PIL.UnidentifiedImageError for no image.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:  # PIL's own limit, twice as high
        raise HugeImage(f"too large; at most {MAX_PIXELS:,} pixels are decoded") from None
    if image.width * image.height > MAX_PIXELS:
        raise HugeImage(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} pixels are decoded")
    return image


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; an EXIF block that cannot be read says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, MemoryError):  # the picture itself
        raise
    except Exception:  # PIL raises many kinds on made-up tags
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: turned upright by EXIF, transparency on white, 16-bit scaled to 8."""
    image = upright(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # PIL's own convert() clips 16-bit values at 255, which makes such pictures white
        array = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
        image = Image.frombytes("L", image.size, (array >> 8).clamp(0, 255).to(torch.uint8).numpy().tobytes())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class _ImageProcessor:
    def __init__(self, steps: list, mean: Sequence[float], std: Sequence[float]):
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(to_rgb(image))


@PROCESSORS.register("blip2_image_train")
class Blip2ImageTrain(_ImageProcessor):
    """A random crop of `min_scale`..`max_scale` of the area, resized to a square (bicubic). Draws from torch's RNG.

    Source: the original's Blip2ImageTrainProcessor, which has no mirroring; `flip` is ours, off by default.
    """

    def __init__(
        self,
        image_size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        flip: bool = False,
    ):
        crop = transforms.RandomResizedCrop(
            image_size, scale=(min_scale, max_scale), interpolation=InterpolationMode.BICUBIC
        )
        super().__init__([crop, *([transforms.RandomHorizontalFlip()] if flip else [])], mean, std)


@PROCESSORS.register("blip2_image_eval")
class Blip2ImageEval(_ImageProcessor):
    """The whole picture, squeezed to a square (bicubic). Source: the original's Blip2ImageEvalProcessor."""

    def __init__(self, image_size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD):
        resize = transforms.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
        super().__init__([resize], mean, std)
