"""A MiniGPT-4 of the dimensions and weights of a golden set: numbers made by the original on tiny random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from minigpt4.common.checkpoint import load_exact, named_tensors
from minigpt4.common.errors import CheckpointError
from minigpt4.common.schema import ModelConfig, QFormerConfig
from minigpt4.models.mini_gpt4 import MiniGPT4

VISION = ("Qformer.", "query_tokens", "ln_vision.")


def read_meta(golden: Path) -> dict:
    """meta.json of a golden set. Raises CheckpointError when it is missing."""
    file = Path(golden) / "meta.json"
    if not file.is_file():
        raise CheckpointError(f"{golden}: no golden set here: meta.json is missing")
    return json.loads(file.read_text())


def read_arrays(golden: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of one .npz file of a golden set."""
    with np.load(Path(golden) / f"{name}.npz") as archive:
        return {k: archive[k] for k in archive.files}


def write_published_files(golden: Path, out: Path) -> dict:
    """Lay out weights.npz as the files a user has: eva_vit_g.pth, a BLIP-2 file, a LLaMA folder with its tokenizer.

    Returns:
        keyword arguments for ModelConfig that name these files and the dimensions.
    """
    golden, out = Path(golden), Path(out)
    config = read_meta(golden)["config"]
    weights = {name: torch.from_numpy(array) for name, array in read_arrays(golden, "weights").items()}

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    out.mkdir(parents=True, exist_ok=True)
    torch.save(below("visual_encoder."), out / "eva_vit_g.pth")
    vision = {k: v for k, v in weights.items() if k.startswith(VISION)}
    torch.save({"model": vision}, out / "blip2_pretrained.pth")
    torch.save({"model": {k: v for k, v in weights.items() if k.startswith("llama_proj.")}}, out / "checkpoint_0.pth")

    sizes = dict(config["llama"])
    sizes["rope_theta"] = sizes.pop("rope_base")
    llama = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    load_exact(named_tensors(llama), below("llama_model."), golden / "weights.npz")
    transformers_logging.disable_progress_bar()
    llama.save_pretrained(out / "llama")
    for file in (golden / "tokenizer").iterdir():
        if "config.json" not in file.name or file.name == "tokenizer_config.json":
            shutil.copy(file, out / "llama" / file.name)

    vit, q = config["vit"], config["qformer"]
    return dict(
        image_size=vit["img_size"],
        vit_kwargs={k: vit[k] for k in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")},
        vit_ckpt=str(out / "eva_vit_g.pth"),
        vit_precision="fp32",
        num_query_token=q["num_query_token"],
        q_former_model=str(out / "blip2_pretrained.pth"),
        qformer_kwargs=QFormerConfig(
            cross_attention_frequency=q["cross_attention_freq"],
            **{k: q[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        ),
        llama_model=str(out / "llama"),
        llama_precision="fp32",
        ckpt=str(out / "checkpoint_0.pth"),
    )


def golden_model(golden: Path, out: Path, device: torch.device | str = "cpu", **changes) -> MiniGPT4:
    """The golden set's model, built through the real loaders. `changes` override ModelConfig keys."""
    return MiniGPT4(ModelConfig(**{**write_published_files(golden, out), **changes}), device)
