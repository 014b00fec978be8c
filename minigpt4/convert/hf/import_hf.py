"""`minigpt4 import-hf FOLDER --out DIR`: convert an exported folder back into the files that the original reads.

DIR gets `eva_vit_g.pth`, `blip2_qformer.pth`, `checkpoint_0.pth`, the folder `llama`, and `minigpt4.yaml`, which names
them. Every weight is bit for bit the folder's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

from ...common.checkpoint import atomic_save, read_state, save_weights
from ...common.errors import CheckpointError
from ...models.eva_vit import EVA_CLIP_G
from ..sharded import WeightFile, check_shapes, read_json, weight_paths, write_json
from . import wide as hf_wide
from .layout import IMAGE_TOKEN, INDEX_FILE, NORMS_FILE, OWN_SETTINGS, to_published
from .whole_folder import whole_folder

LLM = "language_model."
QFORMER_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "cross_attention_frequency",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="written by `minigpt4 export-hf`")
    parser.add_argument("--out", required=True, help="the folder to write; must not exist")


def run(args: argparse.Namespace) -> int:
    folder, out = Path(args.folder), Path(args.out)
    config = read_config(folder)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    files = weight_files(folder, model, config)
    with whole_folder(out) as partial:
        vision = dict(write_llm(files, model, config, partial / "llama"))
        vision = to_published(narrowed(vision, folder, config).items())
        split = {"visual_encoder.": {}, "llama_proj.": {}, "": {}}
        for name, tensor in vision.items():
            split[next(prefix for prefix in split if name.startswith(prefix))][name] = tensor
        vit = {name.removeprefix("visual_encoder."): tensor for name, tensor in split["visual_encoder."].items()}
        atomic_save(vit, partial / "eva_vit_g.pth")
        atomic_save({"model": split[""]}, partial / "blip2_qformer.pth")
        atomic_save({"model": split["llama_proj."]}, partial / "checkpoint_0.pth")
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


def weight_files(folder: Path, model: Blip2ForConditionalGeneration, config: Blip2Config) -> list[WeightFile]:
    """The folder's weight files. Raises CheckpointError unless they hold the weights of `model`."""
    files = [WeightFile(path) for path in weight_paths(folder)]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.text_config.tie_word_embeddings:
        for name in model.language_model._tied_weights_keys or ():
            wanted.pop(f"{LLM}{name}", None)
    check_shapes({name: shape for file in files for name, shape in file.shapes.items()}, wanted, str(folder))
    return files


def write_llm(
    files: list[WeightFile], model: Blip2ForConditionalGeneration, config: Blip2Config, out: Path
) -> Iterator[tuple[str, Tensor]]:
    """Write the LLM's folder shard by shard, and yield the other weights (name, tensor) on the way."""
    out.mkdir()
    llm, rows = model.language_model, config.minigpt4["llm_vocab_size"]
    ends = {id(llm.get_input_embeddings().weight), id(llm.get_output_embeddings().weight)}
    vocabulary = {LLM + name for name, tensor in llm.state_dict(keep_vars=True).items() if id(tensor) in ends}
    holding = [file for file in files if any(name.startswith(LLM) for name in file.shapes)]
    weight_map = {}
    for file in files:
        shard = {}
        for name in file.shapes:
            tensor = file.read(name)
            if not name.startswith(LLM):
                yield name, tensor
            else:  # without the row of the image token
                shard[name.removeprefix(LLM)] = tensor[:rows] if name in vocabulary else tensor
        if shard:
            number = f"-{holding.index(file) + 1:05}-of-{len(holding):05}" if len(holding) > 1 else ""
            saved = f"model{number}.safetensors"
            save_weights(shard, out / saved)
            weight_map |= dict.fromkeys(shard, saved)
    if len(holding) > 1:
        write_json({"metadata": {}, "weight_map": weight_map}, out / INDEX_FILE)
    text = config.text_config
    text.vocab_size = rows
    text.save_pretrained(out)
    GenerationConfig.from_dict(config.minigpt4["llm_generation"]).save_pretrained(out)


def narrowed(state: dict[str, Tensor], folder: Path, config: Blip2Config) -> dict[str, Tensor]:
    """The vision weights in the plain layout; a wide tower (wide.py) is narrowed."""
    width = config.minigpt4.get("vision_width")
    if width is None:
        return state
    plain = {k: hf_wide.narrow(k, v, width).clone() if hf_wide.concerns(k) else v for k, v in state.items()}
    return plain | read_state(folder / NORMS_FILE)


def write_tokenizer(folder: Path, config: Blip2Config, out: Path) -> None:
    """Write the tokenizer without the image token, with the LLM's own chat template."""
    data = read_json(folder / "tokenizer.json")
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != IMAGE_TOKEN]
    options = read_json(folder / "tokenizer_config.json")
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        clean_up_tokenization_spaces=False,
        **{name: options[name] for name in names if options.get(name)},
    )
    tokenizer.chat_template = config.minigpt4["llm_chat_template"]
    tokenizer.save_pretrained(out)
    if (folder / "tokenizer.model").is_file():
        shutil.copy(folder / "tokenizer.model", out)


def write_yaml(folder: Path, config: Blip2Config, out: Path, partial: Path) -> None:
    """Write minigpt4.yaml for demo.py and for training; its paths are those of the finished folder."""
    settings, vision, qformer = config.minigpt4, config.vision_config, config.qformer_config
    width = settings.get("vision_width", vision.hidden_size)
    heads = vision.num_attention_heads - ("vision_width" in settings)
    vit = {
        "patch_size": vision.patch_size,
        "embed_dim": width,
        "depth": vision.num_hidden_layers,
        "num_heads": heads,
        "mlp_ratio": round((vision.intermediate_size + 0.5) / width, 6),  # timm rounds ratio * width down
        "qkv_bias": vision.qkv_bias,
    }
    same = int(EVA_CLIP_G["embed_dim"] * EVA_CLIP_G["mlp_ratio"]) == vision.intermediate_size
    if all(vit[k] == EVA_CLIP_G[k] for k in vit if k != "mlp_ratio") and same:
        vit = {}
    pixels = read_json(folder / "processor_config.json")["image_processor"]
    seen = {"name": "blip2_image_eval", "image_size": pixels["image_size"]}
    seen |= {"mean": pixels["image_mean"], "std": pixels["image_std"]}
    model = {
        "arch": "mini_gpt4",
        "image_size": vision.image_size,
        "vit_model": "eva_clip_g",
        "vit_kwargs": vit,
        "vit_ckpt": str(out / "eva_vit_g.pth"),
        "num_query_token": config.num_query_tokens,
        "q_former_model": str(out / "blip2_qformer.pth"),
        "qformer_kwargs": {key: getattr(qformer, key) for key in QFORMER_SIZES},
        "llama_model": str(out / "llama"),
        "ckpt": str(out / "checkpoint_0.pth"),
    } | {key: settings[key] for key in OWN_SETTINGS if key in settings}
    data = {"model": model, "datasets": {"cc_sbu_align": {"vis_processor": {"train": seen}}}}
    head = f"# Written by `minigpt4 import-hf` from {folder.name}. The paths are those of this folder.\n"
    (partial / "minigpt4.yaml").write_text(head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
