"""`minigpt4 import-hf FOLDER --out DIR`: convert an exported folder back into the files that the original reads.

DIR gets `eva_vit_g.pth`, `blip2_qformer.pth`, `checkpoint_0.pth`, the folder `llama`, and `minigpt4.yaml`, which names
them. Every weight is bit for bit the folder's.
"""

import argparse
import json
import shutil
from dataclasses import fields
from pathlib import Path

import yaml
from torch import Tensor
from transformers import Blip2Config, GenerationConfig

from ...common.checkpoint import atomic_save, read_state
from ...common.errors import CheckpointError
from ...common.schema import QFormerConfig
from ...models.eva_vit import EVA_CLIP_G
from ...models.llm_checks import read_json, weight_files
from ..folders import whole_folder
from .layout import IMAGE_TOKEN, OWN_SETTINGS, SHARD, blip2_with, to_published
from .text import plain_tokenizer

# Keys of model.vit_kwargs (timm's) and their names in transformers; model.qformer_kwargs have transformers' names.
VIT_SIZES = {"patch_size": "patch_size", "embed_dim": "hidden_size", "depth": "num_hidden_layers",
             "num_heads": "num_attention_heads", "qkv_bias": "qkv_bias"}  # fmt: skip
QFORMER_SIZES = [size.name for size in fields(QFormerConfig) if size.name != "dropout"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="written by `minigpt4 export-hf`")
    parser.add_argument("--out", required=True, help="the folder to write; must not exist")


def run(args: argparse.Namespace) -> int:
    folder, out = Path(args.folder), Path(args.out)
    config = read_config(folder)
    with whole_folder(out) as partial:
        others = write_llm(folder, config, partial / "llama")
        vit, projection, qformer = {}, {}, {}
        for name, tensor in to_published(others).items():
            if name.startswith("visual_encoder."):
                vit[name.removeprefix("visual_encoder.")] = tensor
            else:
                (projection if name.startswith("llama_proj.") else qformer)[name] = tensor
        atomic_save(vit, partial / "eva_vit_g.pth")
        atomic_save({"model": qformer}, partial / "blip2_qformer.pth")
        atomic_save({"model": projection}, partial / "checkpoint_0.pth")
        write_tokenizer(folder, config, partial / "llama")
        write_yaml(folder, config, out.absolute(), partial)
    print(f"{out}: the published files; chat with `python demo.py --cfg-path {out / 'minigpt4.yaml'}`")
    return 0


def read_config(folder: Path) -> Blip2Config:
    try:
        config = Blip2Config.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no config.json of a BLIP-2 model there: {error}") from None
    if not getattr(config, "minigpt4", None):
        raise CheckpointError(f"{folder}: not written by `minigpt4 export-hf` (config.json has no `minigpt4`)")
    return config


def write_llm(folder: Path, config: Blip2Config, out: Path) -> dict[str, Tensor]:
    """Write the LLM's folder, without the row of the image token. Returns the other weights.
    Raises CheckpointError: a weight is missing or of another shape."""
    state = {name: tensor for file in weight_files(folder) for name, tensor in read_state(file.path).items()}
    llm = blip2_with(config, state, folder).language_model
    llm.resize_token_embeddings(config.minigpt4["llm_vocab_size"])
    llm.generation_config = GenerationConfig.from_dict(config.minigpt4["llm_generation"])
    llm.save_pretrained(out, max_shard_size=SHARD)
    return {name: tensor for name, tensor in state.items() if not name.startswith("language_model.")}


def write_tokenizer(folder: Path, config: Blip2Config, out: Path) -> None:
    """Write the tokenizer without the image token, with the LLM's own chat template."""
    data = read_json(folder / "tokenizer.json")
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != IMAGE_TOKEN]
    tokenizer = plain_tokenizer(json.dumps(data), read_json(folder / "tokenizer_config.json"))
    tokenizer.chat_template = config.minigpt4["llm_chat_template"]
    tokenizer.save_pretrained(out)
    if (folder / "tokenizer.model").is_file():
        shutil.copy(folder / "tokenizer.model", out)


def write_yaml(folder: Path, config: Blip2Config, out: Path, partial: Path) -> None:
    """Write minigpt4.yaml for demo.py and for training; its paths are those of the finished folder."""
    settings, vision = config.minigpt4, config.vision_config
    width, ratio = vision.hidden_size, EVA_CLIP_G["mlp_ratio"]
    if int(width * ratio) != vision.intermediate_size:  # timm rounds down
        ratio = round((vision.intermediate_size + 0.5) / width, 6)
    vit = {key: getattr(vision, theirs) for key, theirs in VIT_SIZES.items()} | {"mlp_ratio": ratio}
    pixels = read_json(folder / "processor_config.json")["image_processor"]
    model = {
        "arch": "mini_gpt4",
        "image_size": vision.image_size,
        "vit_model": "eva_clip_g",
        "vit_kwargs": {key: value for key, value in vit.items() if value != EVA_CLIP_G[key]},
        "vit_ckpt": str(out / "eva_vit_g.pth"),
        "num_query_token": config.num_query_tokens,
        "q_former_model": str(out / "blip2_qformer.pth"),
        "qformer_kwargs": {key: getattr(config.qformer_config, key) for key in QFORMER_SIZES},
        "llama_model": str(out / "llama"),
        "ckpt": str(out / "checkpoint_0.pth"),
    } | {key: settings[key] for key in OWN_SETTINGS if key in settings}
    seen = {"name": "blip2_image_eval", "image_size": pixels["image_size"]}
    seen |= {"mean": pixels["image_mean"], "std": pixels["image_std"]}
    data = {"model": model, "datasets": {"cc_sbu_align": {"vis_processor": {"train": seen}}}}
    head = f"# Written by `minigpt4 import-hf` from {folder.name}. The paths are those of this folder.\n"
    (partial / "minigpt4.yaml").write_text(head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
