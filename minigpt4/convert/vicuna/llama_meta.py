"""Read LLaMA folders in Meta's or transformers' format, tensor by tensor, under transformers' names.

Meta's format is `params.json` and `consolidated.NN.pth`, one file per GPU (7B 1, 13B 2, 30B 4); each matrix is split
over the files along one axis. Meta's rotary embedding rotates neighbouring values (x0, x1), that of transformers
(x0, x_half), so the rows of each head's query and key matrix are reordered.
Source: facebookresearch/llama's model.py (ColumnParallelLinear splits rows, RowParallelLinear columns, the embedding
columns), and transformers' convert_llama_weights_to_hf.py.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import CheckpointError, some
from ..sharded import WeightFile, check_shapes, read_json, weight_paths

# Meta's name -> (transformers' name, the axis along which it is split over the files; None: each file has all of it).
IN_LAYER = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}
OUTSIDE = {"tok_embeddings": ("model.embed_tokens", 1), "norm": ("model.norm", None), "output": ("lm_head", 0)}
MODEL_SIZES = {4096: "7B", 5120: "13B", 6656: "30B", 8192: "65B"}


@dataclass(frozen=True)
class LlamaSizes:
    """The values of a LLaMA's config.json that determine its weights and its computation."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name in transformers and its shape, in the order of the forward pass."""
        d, f = self.hidden_size, self.intermediate_size
        kv = d // self.num_attention_heads * self.num_key_value_heads
        layer = {
            "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
            "input_layernorm": (d,), "post_attention_layernorm": (d,),
        }  # fmt: skip
        return {
            "model.embed_tokens.weight": (self.vocab_size, d),
            **{f"model.layers.{i}.{n}.weight": s for i in range(self.num_hidden_layers) for n, s in layer.items()},
            "model.norm.weight": (d,),
            "lm_head.weight": (self.vocab_size, d),
        }

    @property
    def published(self) -> bool:
        """Whether this is one of Meta's sizes. Checks of typical values apply to these only."""
        return self.hidden_size in MODEL_SIZES

    def __str__(self) -> str:
        name = f"{MODEL_SIZES[self.hidden_size]}: " if self.published else ""
        return f"{name}width {self.hidden_size}, {self.num_hidden_layers} layers, vocabulary {self.vocab_size:,}"

    def config(self, dtype: torch.dtype, bos: int, eos: int, pad: int | None) -> dict[str, Any]:
        """The content of config.json, with keys that old and new versions of transformers read."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "tie_word_embeddings": False,
            "torch_dtype": str(dtype).removeprefix("torch."),
            "use_cache": True,
        }


class MetaLlama:
    """A LLaMA folder in Meta's format.

    Raises:
        CheckpointError: a file is missing, damaged, or not of this model.
    """

    def __init__(self, folder: Path):
        params = read_json(folder / "params.json")
        paths = sorted(folder.glob("consolidated.*.pth"))
        if not (folder / "consolidated.00.pth").is_file():
            raise CheckpointError(f"{folder}: has params.json, but no consolidated.00.pth; copy it here")
        if params.get("use_scaled_rope"):
            raise CheckpointError(f"{folder}: Llama 3, whose rotary embedding is another; LLaMA 1 or 2 is needed")
        self.folder = folder
        first = WeightFile(folder / "consolidated.00.pth")
        try:
            width, heads = params["dim"], params["n_heads"]
            count = width // first.shapes["layers.0.attention.wq.weight"][0]
            inner = first.shapes["layers.0.feed_forward.w1.weight"][0] * count
            vocab = first.shapes["tok_embeddings.weight"][0]
            layers, eps = params["n_layers"], params["norm_eps"]
        except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{folder}: params.json and consolidated.00.pth are no LLaMA: {error}") from None
        wanted = [folder / f"consolidated.{i:02}.pth" for i in range(count)]
        if missing := [path.name for path in wanted if path not in paths]:
            raise CheckpointError(f"{folder}: this model has {count} files, and {some(missing)} is missing")
        if extra := [path.name for path in paths if path not in wanted]:
            raise CheckpointError(f"{folder}: this model has {count} files; {some(extra)} is of another one")
        self.files = [first, *map(WeightFile, wanted[1:])]
        self.dtype = first.read("norm.weight").dtype
        self.sizes = LlamaSizes(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=params.get("n_kv_heads") or heads, vocab_size=vocab, rms_norm_eps=eps,
            rope_theta=params.get("rope_theta", 10000.0),
            # Not in params.json: LLaMA 1 is fp16 and reads 2,048 tokens, Llama 2 is bf16 and reads 4,096.
            max_position_embeddings=4096 if self.dtype == torch.bfloat16 else 2048,
        )  # fmt: skip
        names = {f"{old}.weight": (f"{new}.weight", axis) for old, (new, axis) in OUTSIDE.items()}
        for i in range(layers):
            for old, (new, axis) in IN_LAYER.items():
                names[f"layers.{i}.{old}.weight"] = (f"model.layers.{i}.{new}.weight", axis)
        self._origin = {new: (old, axis) for old, (new, axis) in names.items()}
        expected = {}
        for new, shape in self.sizes.shapes().items():
            old, axis = self._origin[new]
            expected[old] = tuple(size // count if i == axis else size for i, size in enumerate(shape))
        for file in self.files:
            # rope.freqs are the rotary frequencies, which transformers computes itself.
            shapes = {name: shape for name, shape in file.shapes.items() if not name.endswith("rope.freqs")}
            check_shapes(shapes, expected, f"{file.path} (one of {count} files, by params.json)")

    def read(self, name: str) -> Tensor:
        """The tensor by its name in transformers, joined over the files, with transformers' order of rows."""
        old, axis = self._origin[name]
        if axis is None:
            return self.files[0].read(old)
        parts = [file.read(old) for file in self.files]
        whole = torch.cat(parts, dim=axis) if len(parts) > 1 else parts[0]
        if name.endswith("q_proj.weight"):
            return _permute_rotary(whole, self.sizes.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return _permute_rotary(whole, self.sizes.num_key_value_heads)
        return whole


class TransformersLlama:
    """A LLaMA folder in transformers format: config.json and .bin or .safetensors files.

    Raises:
        CheckpointError: a file is missing, damaged, or not of this model.
    """

    def __init__(self, folder: Path):
        config = read_json(folder / "config.json")
        if config.get("model_type") != "llama":
            raise CheckpointError(f"{folder}: config.json says model_type {config.get('model_type')!r}, not 'llama'")
        self.folder, self.config = folder, config
        try:
            heads = config["num_attention_heads"]
            rope = config.get("rope_parameters") or {}
            self.sizes = LlamaSizes(
                **{k: config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")},
                num_attention_heads=heads, num_key_value_heads=config.get("num_key_value_heads") or heads,
                rms_norm_eps=config["rms_norm_eps"],
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
                max_position_embeddings=config.get("max_position_embeddings", 2048),
            )  # fmt: skip
        except KeyError as error:
            raise CheckpointError(f"{folder}: config.json has no {error}") from None
        self.files = [WeightFile(path) for path in weight_paths(folder)]
        self._place = {name: file for file in self.files for name in file.shapes}
        shapes = {name: file.shapes[name] for name, file in self._place.items()}
        check_shapes(shapes, self.sizes.shapes(), f"{folder} (by its config.json)")
        self.dtype = self.read("model.norm.weight").dtype

    def read(self, name: str) -> Tensor:
        """The tensor by its name. Do not write to it."""
        return self._place[name].read(name)


Llama = MetaLlama | TransformersLlama


def open_llama(folder: Path) -> Llama:
    """Open a LLaMA folder of either format; check names and shapes, read no weights.

    Raises:
        CheckpointError: neither format; or see the two classes.
    """
    if (folder / "config.json").is_file():
        return TransformersLlama(folder)
    if (folder / "params.json").is_file():
        return MetaLlama(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    below = sorted(path.parent.name for path in folder.glob("*/params.json"))
    hint = f"; write one of its folders: {', '.join(str(folder / name) for name in below)}" if below else ""
    raise CheckpointError(f"{folder}: has neither config.json (transformers) nor params.json (Meta){hint}")


def _permute_rotary(weight: Tensor, heads: int) -> Tensor:
    """(heads * D, width): rows 0, 1, 2, 3, ... of each head become 0, 2, 4, ..., 1, 3, 5, ..."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
