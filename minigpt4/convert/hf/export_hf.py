"""`minigpt4 export-hf --cfg-path X --out FOLDER`: write the model as transformers' BLIP-2."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from ...common.config import load_config
from ...common.errors import CheckpointError, ConfigError
from ...common.paths import resolve_path
from ...common.precision import DTYPES, NAMES
from ...common.schema import ModelConfig
from ...models.eva_vit import encode_tokens
from ...models.llm_loading import stored_dtype
from ...tasks import build_model, chat_processor
from ..folders import whole_folder
from .layout import IMAGE_TOKEN, OWN_SETTINGS, SHARD, blip2_with, to_hf
from .text import write_generation_config, write_model_card, write_processor

# BLIP-2 in transformers has one epsilon for all vision norms; the original has these two.
VIT_EPS, LN_VISION_EPS = 1e-6, 1e-5
EPS_ERROR = 1e-5  # largest relative error of ln_vision that the ViT's epsilon may cause
VIT_KEYS = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="config of the model, e.g. eval_configs/minigpt4_eval.yaml")
    parser.add_argument("--out", required=True, help="the folder to write; must not exist")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of all but the Q-Former (default: that of the files)")
    parser.add_argument("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")


def run(args: argparse.Namespace) -> int:
    """Write the folder, completely or not at all."""
    config, out = load_config(args.cfg_path, args.options, mode="chat"), Path(args.out)
    check_config(config.model)
    llm_dtype = args.dtype or NAMES.get(stored_dtype(resolve_path(config.model.llama_model)), "auto")
    as_stored = {"low_resource": False, "device_map": None, "vit_precision": "fp32", "llama_precision": llm_dtype}
    with whole_folder(out) as folder:
        model, see = build_model(replace(config.model, **as_stored), "cpu").eval(), chat_processor(config)
        whole = write_weights(model, folder, DTYPES.get(args.dtype))
        processor = write_processor(model, see, folder)
        write_generation_config(model, processor, whole.config, folder)
        write_model_card(config, whole, folder, out.name)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {whole.num_parameters():,} parameters, {size / 1e9:.2f} GB")
    return 0


def check_config(config: ModelConfig) -> None:
    """Raises ConfigError for a model that transformers' BLIP-2 cannot represent, before any file is read."""
    unknown = ", ".join(sorted(set(config.vit_kwargs) - VIT_KEYS))
    problems = {
        f"model.vit_model: {config.vit_model}; transformers' BLIP-2 has only the EVA-ViT (eva_clip_g). "
        "Other towers run only with this project's own code": config.vit_model != "eva_clip_g",
        f"model.vit_kwargs: {unknown}; transformers' BLIP-2 has no such setting": unknown,
        "model.has_qformer: False; transformers' BLIP-2 always has a Q-Former": not config.has_qformer,
        f"model.proj_layers: {config.proj_layers}; transformers' BLIP-2 has one linear layer": config.proj_layers != 1,
    }
    if any(problems.values()):
        found = [problem for problem, holds in problems.items() if holds]
        raise ConfigError("export-hf cannot write this model\n  " + "\n  ".join(found))


@torch.no_grad()
def write_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> Blip2ForConditionalGeneration:
    """Write config.json and the weights, in `dtype` or in that of the files; the Q-Former stays in fp32, as in
    transformers. Only the tensors that change are copied, and one shard at a time."""
    llm = model.llama_model
    if model.config.lora:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in llm.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
    own_rows = len(llm.get_input_embeddings().weight)
    # The image token's id is the first free one of the tokenizer; its row is new where the table ends there.
    vocabulary = model.tokenizer.get_vocab()
    image_id = vocabulary.get(IMAGE_TOKEN, max(vocabulary.values()) + 1)
    rows = max(own_rows, image_id + 1)
    state = to_hf({name: t.detach() for name, t in model.published_tensors().items() if ".lora_" not in name})
    if dtype is not None:
        state = {k: v if k.startswith(("qformer.", "query_tokens")) else v.to(dtype) for k, v in state.items()}
    settings = {key: getattr(model.config, key) for key in OWN_SETTINGS} | {
        "llm_vocab_size": own_rows,
        "llm_generation": llm.generation_config.to_diff_dict(),
        "llm_chat_template": model.tokenizer.chat_template,
    }
    if (error := eps_error(model)) > EPS_ERROR:
        raise CheckpointError(
            "export-hf cannot write this model: transformers' BLIP-2 has one epsilon for all vision norms, which would "
            f"be a relative error of {error:.0e} in ln_vision, because the ViT's output varies so little"
        )
    config = Blip2Config(
        vision_config=vision_config(model),
        qformer_config=model.Qformer.config.to_dict(),
        text_config=llm.config.to_dict() | {"_name_or_path": ""},
        num_query_tokens=model.query_tokens.shape[1],
        image_token_index=image_id,
        tie_word_embeddings=llm.config.tie_word_embeddings,
        minigpt4=settings,
    )
    whole = blip2_with(config, state, "export-hf: the model")
    if rows > own_rows:
        whole.resize_token_embeddings(rows, mean_resizing=False)
        for end in (whole.get_input_embeddings(), whole.get_output_embeddings()):
            # A copy of row 0: the new token is never more likely than token 0, so greedy text is the same.
            end.weight[own_rows:] = end.weight[0]
    whole.save_pretrained(folder, max_shard_size=SHARD, save_original_format=False)
    config.dtype = dtype or llm.dtype  # save_pretrained wrote the dtype of the first weight, the ViT's
    config.save_pretrained(folder)
    return whole


def vision_config(model: nn.Module) -> dict:
    vit, block = model.visual_encoder, model.visual_encoder.blocks[0]
    return {
        "hidden_size": vit.num_features,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "patch_size": vit.patch_embed.patch_size[0],
        "image_size": model.config.image_size,
        "qkv_bias": block.attn.q_bias is not None,
        "layer_norm_eps": VIT_EPS,
    }


def eps_error(model: nn.Module) -> float:
    """The relative error of ln_vision with the ViT's epsilon, where a token's channels vary least: over black, grey,
    white and noise pictures."""
    size, generator = model.config.image_size, torch.Generator().manual_seed(0)
    pictures = [torch.full((1, 3, size, size), value) for value in (-1.8, 0.0, 2.1)]
    pictures.append(torch.randn(1, 3, size, size, generator=generator))
    tokens = (encode_tokens(model.visual_encoder, picture).float() for picture in pictures)
    variance = min(t.var(-1, correction=0).min().item() for t in tokens)
    return math.sqrt((variance + LN_VISION_EPS) / (variance + VIT_EPS)) - 1
