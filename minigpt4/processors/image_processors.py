"""The bytes of an image file -> RGB picture -> normalized float tensor (3, H, W)."""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..common.packages import require_packages
from ..common.registry import PROCESSORS

try:
    from simplejpeg import decode_jpeg
except ImportError:  # an extra; PIL gives the same pixels
    decode_jpeg = None

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = Image.Resampling.BICUBIC
# Whatever else PIL knows stays closed: some of its readers start other programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
NOT_AN_IMAGE = f"not an image ({', '.join(FORMATS)})"
ORIENTATION = 0x0112  # EXIF
QUARTER_TURNS = {1: 0, 8: 1, 3: 2, 6: 3}  # EXIF orientation -> counterclockwise; the others are mirrored
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
    with _named(name):
        return to_rgb(open_image(content))


def decode_pixels(content: bytes, name: str | os.PathLike, smallest: int | None = None) -> np.ndarray:
    """The pixels of `decode_image`, uint8 (H, W, 3); most JPEGs come without PIL's copies, in 0.6 of the time.
    `smallest`: JPEGs may be decoded at a reduced scale that leaves both sides this long. Raises as `decode_image`."""
    with _named(name):
        image = open_image(content)
        pixels = _jpeg_pixels(content, image, smallest)
        return np.array(to_rgb(image)) if pixels is None else pixels


def decoder_of(processor: Callable) -> Callable[[bytes, str | os.PathLike], Image.Image | np.ndarray]:
    """What makes the input of an image processor: its own `decode(content, name)`, or else `decode_image`."""
    return getattr(processor, "decode", decode_image)


def _jpeg_pixels(content: bytes, image: Image.Image, smallest: int | None) -> np.ndarray | None:
    """The same pixels as PIL's by simplejpeg, upright; None where PIL has to decode, or to say what is wrong."""
    with suppress(Exception):
        turns = QUARTER_TURNS.get(image.getexif().get(ORIENTATION, 1))
        if decode_jpeg and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and turns is not None:
            height, width = (min(side, smallest or side) for side in (image.height, image.width))
            # It takes the smallest scale with these sides: for a very large picture, that of open_image.
            return np.ascontiguousarray(np.rot90(decode_jpeg(content, min_height=height, min_width=width), turns))
    return None


@contextmanager
def _named(name: str | os.PathLike) -> Iterator[None]:
    try:
        yield
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


# Processors import torchvision themselves: it loads torch._dynamo, two seconds that not every command needs.


@PROCESSORS.register("blip2_image_train")
class Blip2ImageTrain:
    """A random crop of `min_scale`..`max_scale` of the area, resized to a square (bicubic). Draws from torch's RNG.

    Resizes uint8 tensors: several times as fast as the original's PIL, and within one level of 255 of it.
    `scaled_jpeg` decodes large JPEGs at a fraction of their size, from which no crop has to be enlarged. Other crops
    are drawn then, because torch draws their places in pixels.
    Source: the original's Blip2ImageTrainProcessor, which has no mirroring; `flip` is ours, off by default.
    """

    def __init__(
        self, image_size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD,
        min_scale: float = 0.5, max_scale: float = 1.0, flip: bool = False, scaled_jpeg: bool = False,
    ):  # fmt: skip
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(image_size, (min_scale, max_scale), interpolation=BICUBIC)
        mirror = [v2.RandomHorizontalFlip()] if flip else []
        normalize = v2.Normalize([255 * m for m in mean], [255 * s for s in std], inplace=True)
        self.transform = v2.Compose([crop, *mirror, v2.ToDtype(torch.float32), normalize])
        self.smallest = None
        if scaled_jpeg:
            require_packages("vis_processor.train.scaled_jpeg", "fast", "simplejpeg")
            # The narrowest crop has `min_scale` of the area, and sides of 3 : 4.
            self.smallest = math.ceil(image_size / math.sqrt(min_scale * 3 / 4))

    def decode(self, content: bytes, name: str | os.PathLike) -> np.ndarray:
        """See `decode_pixels`."""
        return decode_pixels(content, name, self.smallest)

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """A picture, or the pixels that `decode` returns -> (3, H, W)."""
        pixels = np.array(to_rgb(image)) if isinstance(image, Image.Image) else image
        return self.transform(torch.from_numpy(pixels).permute(2, 0, 1))


@PROCESSORS.register("blip2_image_eval")
class Blip2ImageEval:
    """The whole picture, squeezed to a square (bicubic) by PIL. Source: the original's Blip2ImageEvalProcessor."""

    def __init__(self, image_size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD):
        from torchvision import transforms

        resize = transforms.Resize((image_size, image_size), interpolation=BICUBIC)
        self.transform = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(to_rgb(image))
