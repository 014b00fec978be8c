"""MiniGPT-4's processor for transformers: puts the image where the prompt says and tokenizes as in training.

It needs only transformers, torch, PIL and numpy; README.md beside it shows its use. `Blip2Processor` puts the image
before BOS, which this model never saw in training. Here `<ImageHere>` in a prompt becomes the image's tokens, each text
between images is tokenized separately (so it gets the tokenizer's leading-space piece), and BOS comes first, once.
"""

import codecs

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: rotate by EXIF, put transparency on white, scale other ranges to 0..255."""
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        # PIL's convert() clips at 0 and 255: 16-bit pictures would become white, and pixels of 0..1 black.
        image = Image.fromarray(_eight_bits(np.asarray(image), sixteen_bits))
    if image.mode == "La":  # PIL converts it to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, sixteen_bits: bool) -> np.ndarray:
    """Scale grey values (H, W) to uint8. Other ranges than 16 bits are stretched, from 0 or the smallest value to the
    largest. Raises ValueError: values that are not finite."""
    if not np.isfinite(values).all():
        raise ValueError("its pixels hold NaN or infinity; write finite values, e.g. of 0..1")
    if sixteen_bits:
        return (values // 256).astype(np.uint8)
    least, most = min(float(values.min()), 0.0), float(values.max())
    return np.rint((values.astype(np.float64) - least) * (255 / (most - least or 1))).astype(np.uint8)


def flatten(images) -> list:
    """A flat list of images, from one image or nested lists."""
    if isinstance(images, (list, tuple)):
        return [image for part in images for image in flatten(part)]
    return [] if images is None else [images]


class MiniGPT4ImageProcessor(BaseImageProcessor):
    """Resizes pictures to a square (PIL's bicubic) and normalizes them."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers' own form)

    def __init__(self, image_size: int = 224, image_mean=CLIP_MEAN, image_std=CLIP_STD, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images, return_tensors: str = "pt", **kwargs) -> BatchFeature:
        """pixel_values (N, 3, S, S) of PIL images, paths, URLs or uint8 arrays (H, W, 3), also in nested lists."""
        pixels = [self._pixels(image) for image in flatten(self.fetch_images(images))]
        return BatchFeature({"pixel_values": np.stack(pixels)}, tensor_type=return_tensors)

    def _pixels(self, image) -> np.ndarray:
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        image = to_rgb(image).resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
        return ((scaled - np.float32(self.image_mean)) / np.float32(self.image_std)).transpose(2, 0, 1)


class MiniGPT4Processor(ProcessorMixin):
    """Converts prompts with `<ImageHere>` and images to model inputs, and generated ids to answers.

    Args:
        num_query_tokens: tokens per image.
        stop: strings that end an answer.
        keep_after: the answer is only what follows the last of this string.
        drop_leading_ids: ids to drop from the start of an answer, in this order, once each.
    """

    def __init__(
        self, image_processor, tokenizer, num_query_tokens: int = 32, stop=("###",), keep_after: str = "",
        drop_leading_ids=(), chat_template=None,
    ):  # fmt: skip
        self.image_token = "<ImageHere>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.num_query_tokens = num_query_tokens
        self.stop = list(stop)
        self.keep_after = keep_after
        self.drop_leading_ids = list(drop_leading_ids)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images=None, text=None, return_tensors: str = "pt", padding_side: str | None = None, **kwargs
    ) -> BatchFeature:
        """
        Args:
            images: one for each `<ImageHere>`, in the order of the prompts; may be nested lists.
            text: a prompt or a list of B prompts, without BOS.
            padding_side: left (the default), for generation; right for training.
        Returns:
            input_ids and attention_mask (B, T), and pixel_values (N, 3, S, S) when there are images.
        Raises:
            ValueError: no text, or another number of images than of `<ImageHere>`.
        """
        if text is None:
            raise ValueError(f"give a text with {self.image_token} where the image goes")
        prompts = [text] if isinstance(text, str) else list(text)
        images = flatten(images)
        places = sum(prompt.count(self.image_token) for prompt in prompts)
        if places != len(images):
            raise ValueError(f"the text has {self.image_token} {places} times, but there are {len(images)} images")
        rows = [{"input_ids": self.prompt_ids(prompt)} for prompt in prompts]
        data = dict(self.tokenizer.pad(rows, padding_side=padding_side))
        if images:
            data["pixel_values"] = self.image_processor(images, return_tensors="np")["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids of one prompt: BOS, then each text tokenized separately, with the image tokens between them."""
        ids: list[int] = []
        for number, segment in enumerate(prompt.split(self.image_token)):
            if number:
                ids += [self.image_token_id] * self.num_query_tokens
            found = self.tokenizer(segment, add_special_tokens=False)["input_ids"] if segment else []
            bos = self.tokenizer.bos_token_id
            # ChatML models have `<|im_start|>` as BOS, and the first turn opens with it
            if number == 0 and bos is not None and found[:1] != [bos]:
                found = [bos, *found]
            ids += found
        return ids

    def answers(self, output_ids: torch.Tensor, inputs: BatchFeature | None = None) -> list[str]:
        """The answers (B strings) in what `generate` returned (B, T), each cut at its first stop. `inputs` is the
        processor's output, whose prompts are removed (transformers' `generate` returns them too)."""
        start = inputs["input_ids"].shape[1] if inputs is not None else 0
        return [self.answer(row[start:]) for row in output_ids.tolist()]

    def answer(self, ids: list[int]) -> str:
        """The answer in the new ids of one row."""
        for unwanted in self.drop_leading_ids:
            ids = ids[1:] if ids[:1] == [unwanted] else ids
        text = self.text(ids)
        for mark in self.stop:
            text = text.split(mark, 1)[0]
        text = (text.rsplit(self.keep_after, 1)[-1] if self.keep_after else text).strip()
        # EOS ends an answer, and fills up shorter rows
        for token in {self.tokenizer.eos_token, self.tokenizer.pad_token} - {None}:
            while text.endswith(token):
                text = text.removesuffix(token).rstrip()
        return text

    def text(self, ids: list[int]) -> str:
        """The text of ids, decoded byte by byte where the vocabulary has byte pieces (`<0x0A>`).

        The tokenizer's own decoder turns a run of bytes into U+FFFD when one of them is not UTF-8.
        """
        vocabulary = self.tokenizer.get_vocab()
        if "<0x0A>" not in vocabulary:
            return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        special, text, run = set(self.tokenizer.all_special_ids), b"", b""
        for i, piece in zip(ids, self.tokenizer.convert_ids_to_tokens(ids), strict=True):
            if i in special:
                # the piece of a special token may have a space that its text has not
                name = self.tokenizer.decode([i]).strip().encode()
                text += (b" " + run.removeprefix(b" ") if run else b"") + name
                run = b""
            elif len(piece) == 6 and piece.startswith("<0x"):
                run += bytes([int(piece[3:5], 16)])
            else:
                run += piece.replace("▁", " ").encode()
        return (text + run.removeprefix(b" ")).decode(errors="minigpt4_one_by_one")


# A wrong byte becomes one U+FFFD; decoding continues with the next byte.
codecs.register_error("minigpt4_one_by_one", lambda error: ("\ufffd", error.start + 1))
