"""Read LLaMA folders in Meta's or transformers' format, tensor by tensor, under transformers' names.

Meta's format is `params.json` and `consolidated.NN.pth`, one file per GPU (7B 1, 13B 2, 30B 4); each matrix is split
over the files along one axis. Meta's rotary embedding rotates neighbouring values (x0, x1), that of transformers
(x0, x_half), so the rows of each head's query and key matrix are reordered.
Source: facebookresearch/llama's model.py (ColumnParallelLinear splits rows, RowParallelLinear columns, the embedding
columns), and transformers' convert_llama_weights_to_hf.py.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from ...common.checkpoint import load_exact, weight_file
from ...common.errors import CheckpointError, some
from ...models.llm import create_llm
from ...models.llm_checks import read_json, weight_files

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
STRUCTURE = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
MODEL_SIZES = {4096: "7B", 5120: "13B", 6656: "30B", 8192: "65B"}


def describe(sizes: LlamaConfig) -> str:
    """E.g. `13B: width 5120, 40 layers, vocabulary 32,001`."""
    name = f"{MODEL_SIZES[sizes.hidden_size]}: " if sizes.hidden_size in MODEL_SIZES else ""
    return f"{name}width {sizes.hidden_size}, {sizes.num_hidden_layers} layers, vocabulary {sizes.vocab_size:,}"


def weights_of(sizes: LlamaConfig, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Every weight by its name in transformers, on the meta device, in the order of the forward pass."""
    return dict(create_llm(sizes, dtype).named_parameters())


def config_json(sizes: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a LLaMA, with keys that old and new versions of transformers read."""
    keys = (*STRUCTURE, "vocab_size", "rms_norm_eps", "max_position_embeddings")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **{key: getattr(sizes, key) for key in keys},
        "rope_theta": sizes.rope_parameters["rope_theta"], "hidden_act": "silu", "initializer_range": 0.02,
        "tie_word_embeddings": False, "torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True,
    }  # fmt: skip


class MetaLlama:
    """A LLaMA folder in Meta's format. Raises CheckpointError: a file is missing, damaged, or not of this model."""

    def __init__(self, folder: Path):
        self.folder, params = folder, read_json(folder / "params.json")
        here = sorted(path.name for path in folder.glob("consolidated.*.pth"))
        if "consolidated.00.pth" not in here:
            raise CheckpointError(f"{folder}: has params.json, but no consolidated.00.pth; copy it here")
        if params.get("use_scaled_rope"):
            raise CheckpointError(f"{folder}: Llama 3, whose rotary embedding is another; LLaMA 1 or 2 is needed")
        first = weight_file(folder / "consolidated.00.pth")
        try:
            shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
            width, heads = params["dim"], params["n_heads"]
            count = width // shapes["layers.0.attention.wq.weight"][0]
            self.sizes = LlamaConfig(
                hidden_size=width, intermediate_size=shapes["layers.0.feed_forward.w1.weight"][0] * count,
                num_hidden_layers=params["n_layers"], num_attention_heads=heads,
                num_key_value_heads=params.get("n_kv_heads") or heads, vocab_size=shapes["tok_embeddings.weight"][0],
                rms_norm_eps=params["norm_eps"], rope_theta=params.get("rope_theta", 10000.0),
                # Not in params.json: LLaMA 1 is fp16 and reads 2,048 tokens, Llama 2 is bf16 and reads 4,096.
                max_position_embeddings=4096 if first.tensors["norm.weight"].dtype == torch.bfloat16 else 2048,
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: params.json and consolidated.00.pth are no LLaMA: {error}") from None
        names = [f"consolidated.{i:02}.pth" for i in range(count)]
        if here != names:
            missing, others = some(set(names) - set(here)) or "none", some(set(here) - set(names)) or "none"
            raise CheckpointError(f"{folder}: this model has {count} files; missing: {missing}; of another: {others}")
        self.files = [first, *(weight_file(folder / name) for name in names[1:])]
        self._origin = {f"{new}.weight": (f"{old}.weight", axis) for old, (new, axis) in OUTSIDE.items()} | {
            f"model.layers.{i}.{new}.weight": (f"layers.{i}.{old}.weight", axis)
            for i in range(params["n_layers"])
            for old, (new, axis) in IN_LAYER.items()
        }
        parts = {}
        for name, tensor in weights_of(self.sizes).items():
            old, axis = self._origin[name]
            parts[old] = tensor if axis is None else tensor.chunk(count, axis)[0]
        for file in self.files:
            # rope.freqs are the rotary frequencies, which transformers computes itself.
            load_exact(dict(parts), file.tensors, file.path, ignore=lambda name: "rope.freqs" in name, device="meta")

    def read(self, name: str) -> Tensor:
        """The tensor by its name in transformers, joined over the files, with transformers' order of rows."""
        old, axis = self._origin[name]
        if axis is None:
            return self.files[0].value(old)
        whole = torch.cat([file.value(old) for file in self.files], dim=axis)
        if name.endswith("q_proj.weight"):
            return _permute_rotary(whole, self.sizes.num_attention_heads)
        if name.endswith("k_proj.weight"):
            return _permute_rotary(whole, self.sizes.num_key_value_heads)
        return whole


class TransformersLlama:
    """A LLaMA folder in transformers format: config.json and .bin or .safetensors files.
    Raises CheckpointError: a file is missing, damaged, or not of this model."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, read_json(folder / "config.json")
        if (found := self.config.get("model_type")) != "llama":
            raise CheckpointError(f"{folder}: config.json says model_type {found!r}, not 'llama'")
        self.sizes = LlamaConfig.from_dict(self.config)
        self.files = weight_files(folder)
        self._place = {name: file for file in self.files for name in file.tensors}
        found = {name: file.tensors[name] for name, file in self._place.items()}
        load_exact(weights_of(self.sizes), found, folder, device="meta")

    def read(self, name: str) -> Tensor:
        """The tensor by its name. Do not write to it."""
        return self._place[name].value(name)


Llama = MetaLlama | TransformersLlama


def open_llama(folder: Path) -> Llama:
    """Open a LLaMA folder of either format; check names and shapes, read no weights.
    Raises CheckpointError: neither format; or see the two classes."""
    if (folder / "config.json").is_file():
        return TransformersLlama(folder)
    if (folder / "params.json").is_file():
        return MetaLlama(folder)
    below = sorted(str(path.parent) for path in folder.glob("*/params.json"))
    hint = f"; write one of its folders: {', '.join(below)}" if below else ""
    raise CheckpointError(f"{folder}: there is neither config.json (transformers) nor params.json (Meta){hint}")


def _permute_rotary(weight: Tensor, heads: int) -> Tensor:
    """(heads * D, width): rows 0, 1, 2, 3, ... of each head become 0, 2, 4, ..., 1, 3, 5, ..."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
