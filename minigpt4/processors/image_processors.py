"""The bytes of an image file -> RGB picture -> normalized float tensor (3, H, W)."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..common.registry import PROCESSORS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = Image.Resampling.BICUBIC
# Whatever else PIL knows stays closed: some of its readers start other programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
NOT_AN_IMAGE = f"not an image ({', '.join(FORMATS)})"
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
MAX_PIXELS = 89_478_485  # where PIL begins to warn: 256 MiB as RGB. A file of kilobytes can ask for any size
MAX_JPEG_PIXELS = 225_000_000  # JPEG is decoded at half scale from MAX_PIXELS on: phones take 108 and 200 megapixels
LIMITS = f"at most {MAX_PIXELS:,} pixels are decoded, of a JPEG {MAX_JPEG_PIXELS:,}"
Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS // 2  # PIL refuses twice this number
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # open_image refuses it


class BrokenImage(ValueError):
    """Not an image, cut short, damaged, or of a kind that is not read."""


class HugeImage(BrokenImage):
    """Too many pixels to decode."""


def pictures_in(folder: Path) -> list[Path]:
    """The image files of a folder by their suffix, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def decode_image(content: bytes, name: str | os.PathLike) -> Image.Image:
    """The bytes of an image file -> its first frame, in RGB (see `to_rgb`). Raises HugeImage and BrokenImage, which
    call the image `name`; nothing else, whatever the bytes are."""
    try:
        return to_rgb(open_image(content))
    except BrokenImage as error:
        raise type(error)(f"{name}: {error}") from None


@contextmanager
def _broken_image() -> Iterator[None]:
    """PIL's readers and decoders raise anything from SyntaxError to struct.error on damaged files."""
    try:
        yield
    except BrokenImage:
        raise
    except Image.DecompressionBombError:
        raise HugeImage(f"too large; {LIMITS}") from None
    except UnidentifiedImageError:  # its text has the address of an object, which would differ each time
        raise BrokenImage(NOT_AN_IMAGE) from None
    except Exception as error:
        raise BrokenImage(f"the image is damaged: {str(error)[:120] or type(error).__name__}") from None


def open_image(content: bytes) -> Image.Image:
    """An image in FORMATS, or HEIC with pillow-heif; no pixels are decoded yet. Raises as `decode_image`."""
    formats = FORMATS
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS and b"avif" not in content[16:64]:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise BrokenImage("HEIC: convert it to JPEG, or install pillow-heif") from None
        register_heif_opener()
        formats = ("HEIF",)
    with _broken_image():
        image = Image.open(io.BytesIO(content), formats=formats)
        if image.width * image.height > MAX_PIXELS and image.format in ("JPEG", "MPO"):
            image.draft(None, (image.width // 2, image.height // 2))
    if image.width * image.height > MAX_PIXELS:
        raise HugeImage(f"too large: {image.width} x {image.height} pixels; {LIMITS}")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: upright by EXIF, transparency on white, other ranges as 0..255. Raises BrokenImage."""
    with _broken_image():
        image.load()
        sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        with suppress(Exception):  # PIL raises many kinds on an EXIF block that it cannot read
            image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):
            # PIL's own convert() clips at 0 and 255: 16-bit pictures become white, and pixels of 0..1 black.
            image = Image.fromarray(_eight_bits(np.asarray(image), sixteen_bits))
        if image.mode == "La":  # PIL converts it to LA only
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def _eight_bits(values: np.ndarray, sixteen_bits: bool) -> np.ndarray:
    """Grey values (H, W) -> uint8. Other ranges than 16 bits are stretched, from 0 or the smallest value to the
    largest. Raises BrokenImage: values that are not finite."""
    if not np.isfinite(values).all():
        raise BrokenImage("its pixels hold NaN or infinity; write finite values, e.g. of 0..1")
    if sixteen_bits:
        return (values // 256).astype(np.uint8)
    least, most = min(float(values.min()), 0.0), float(values.max())
    return np.rint((values.astype(np.float64) - least) * (255 / (most - least or 1))).astype(np.uint8)


class _ImageProcessor:
    # Processors import torchvision themselves: it loads torch._dynamo, two seconds that not every command needs.
    def __init__(self, steps: list, mean: Sequence[float], std: Sequence[float]):
        from torchvision import transforms

        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(to_rgb(image))


@PROCESSORS.register("blip2_image_train")
class Blip2ImageTrain(_ImageProcessor):
    """A random crop of `min_scale`..`max_scale` of the area, resized to a square (bicubic). Draws from torch's RNG.

    Source: the original's Blip2ImageTrainProcessor, which has no mirroring; `flip` is ours, off by default.
    """

    def __init__(
        self, image_size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD,
        min_scale: float = 0.5, max_scale: float = 1.0, flip: bool = False,
    ):  # fmt: skip
        from torchvision import transforms

        crop = transforms.RandomResizedCrop(image_size, (min_scale, max_scale), interpolation=BICUBIC)
        super().__init__([crop, *([transforms.RandomHorizontalFlip()] if flip else [])], mean, std)


@PROCESSORS.register("blip2_image_eval")
class Blip2ImageEval(_ImageProcessor):
    """The whole picture, squeezed to a square (bicubic). Source: the original's Blip2ImageEvalProcessor."""

    def __init__(self, image_size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD):
        from torchvision import transforms

        super().__init__([transforms.Resize((image_size, image_size), interpolation=BICUBIC)], mean, std)
