"""`minigpt4 export-hf --cfg-path X --out FOLDER`: write the model as transformers' BLIP-2."""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from timm.models.eva import Eva
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from ...common.checkpoint import save_weights
from ...common.config import load_config
from ...common.errors import ConfigError
from ...common.paths import resolve_path
from ...common.precision import DTYPES
from ...common.schema import Config, ModelConfig
from ...tasks import build_model
from ..sharded import check_shapes, write_json
from . import wide as hf_wide
from .check import compare, our_answer
from .layout import IMAGE_TOKEN, INDEX_FILE, NORMS_FILE, OWN_SETTINGS, to_hf
from .text import Facts, write_generation_config, write_model_card, write_processor
from .whole_folder import whole_folder

PLAIN_ENOUGH = 1e-5  # allowed relative error of ln_vision in the plain layout; above it, see wide.py
SHARD = "2GB"  # a shard is in memory twice while it is written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg-path", required=True, help="config of the model, e.g. eval_configs/minigpt4_eval.yaml")
    parser.add_argument("--out", required=True, help="the folder to write; must not exist")
    parser.add_argument("--dtype", choices=list(DTYPES), help="dtype of the weights (default: that of the files)")
    parser.add_argument("--no-check", action="store_true", help="do not open the folder and compare it with the model")
    parser.add_argument("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.cfg_path, args.options, mode="chat")
    export(config, Path(args.out), args.dtype, check=not args.no_check)
    return 0


def export(config: Config, out: Path, dtype: str | None = None, check: bool = True) -> None:
    """Write the folder, completely or not at all.

    Args:
        dtype: fp32, fp16, bf16; None: the dtype of the files. The Q-Former stays in fp32, as in transformers.
        check: open the folder with transformers and compare it with our model on one picture.
    Raises:
        ConfigError: transformers' BLIP-2 cannot represent this model.
        CheckpointError: `out` exists or cannot be written, or the check failed.
    """
    from ...tasks import chat_processor

    check_config(config.model)
    model_config = replace(
        config.model,
        low_resource=False,
        device_map=None,
        vit_precision="fp32",
        llama_precision=dtype or _llm_precision(config.model.llama_model),
    )
    with whole_folder(out) as partial:
        model = build_model(model_config, "cpu").eval()
        see = chat_processor(config)
        ours = our_answer(model, see, config) if check else None
        hf_config, facts = write_weights(model, partial, DTYPES[dtype] if dtype else None)
        processor = write_processor(model, pixel_options(see), partial)
        image_id = hf_config.image_token_index if facts.row_added else None
        write_generation_config(model, processor, partial, image_id)
        del model  # the check needs the memory
        gc.collect()
        facts = replace(facts, name=out.name)
        if ours:
            facts = replace(facts, checked=compare(partial, ours, facts.dtypes == "float32"))
        write_model_card(config, hf_config, facts, partial)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {facts.parameters:,} parameters, {facts.dtypes}, {size / 1e9:.2f} GB. {facts.checked}")


def check_config(config: ModelConfig) -> None:
    """Raises ConfigError for a model that transformers' BLIP-2 cannot represent, before any file is read."""
    sizes = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"}
    problems = []
    if config.vit_model != "eva_clip_g":
        problems.append(
            f"model.vit_model: {config.vit_model}; transformers' BLIP-2 has only the EVA-ViT (eva_clip_g). "
            "Other towers run only with this project's own code"
        )
    elif unknown := set(config.vit_kwargs) - sizes:
        problems.append(f"model.vit_kwargs: {', '.join(sorted(unknown))} transformers' BLIP-2 has no such setting")
    if not config.has_qformer:
        problems.append("model.has_qformer: False; transformers' BLIP-2 always has a Q-Former")
    if config.proj_layers != 1:
        problems.append(f"model.proj_layers: {config.proj_layers}; transformers' BLIP-2 has one linear layer there")
    if problems:
        raise ConfigError("export-hf cannot write this model\n  " + "\n  ".join(problems))


def _llm_precision(folder: str) -> str:
    """The dtype in the config.json of the LLM's folder; `auto` when there is none."""
    file = Path(resolve_path(folder)) / "config.json"
    stated = json.loads(file.read_text()) if file.is_file() else {}
    names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    return names.get(stated.get("dtype") or stated.get("torch_dtype"), "auto")


# ---------------------------------------------------------------------------------------------------- weights


def write_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> tuple[Blip2Config, Facts]:
    """Write config.json and the shards. Only the tensors that change are copied, and one shard at a time."""
    llm, vit = model.llama_model, model.visual_encoder
    if model.config.lora:
        merge_lora(llm)
    image_id, rows = image_row(model)
    embeddings, head = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight
    published, seen = {}, set()
    for name, tensor in model.published_tensors().items():
        # a tied head is the embeddings under a second name; LoRA was merged
        if id(tensor) not in seen and ".lora_" not in name:
            seen.add(id(tensor))
            grown = tensor is embeddings or tensor is head
            published[name] = _grow(tensor.detach(), rows) if grown else tensor.detach()
    state = to_hf(published)
    if dtype is not None:
        state = {k: v if k.startswith(("qformer.", "query_tokens")) else v.to(dtype) for k, v in state.items()}

    vision = vision_config(vit, model.config.image_size)
    variance = smallest_variance(model)
    error = hf_wide.plain_error(variance)
    wide = error > PLAIN_ENOUGH
    settings = own_settings(model)
    if wide:
        settings["vision_width"] = vision["hidden_size"]
        norms = {k: v for k, v in state.items() if hf_wide.is_norm(k) and k.endswith("weight")}
        save_weights(norms, folder / NORMS_FILE)
        state, vision = hf_wide.widen(state, vision)
    text = llm.config.to_dict() | {"vocab_size": rows, "_name_or_path": ""}
    config = Blip2Config(
        vision_config=vision,
        qformer_config=model.Qformer.config.to_dict(),
        text_config=text,
        num_query_tokens=model.query_tokens.shape[1],
        image_token_index=image_id,
        tie_word_embeddings=llm.config.tie_word_embeddings,
        architectures=["Blip2ForConditionalGeneration"],
        dtype=dtype or llm.dtype,
        minigpt4=settings,
    )
    with torch.device("meta"):
        theirs = Blip2ForConditionalGeneration(config).state_dict()
    wanted = {k: tuple(v.shape) for k, v in theirs.items()}
    if config.tie_word_embeddings:
        wanted = {k: v for k, v in wanted.items() if k in state or not k.endswith("lm_head.weight")}
    check_shapes({k: tuple(v.shape) for k, v in state.items()}, wanted, "export-hf: a BLIP-2 of these sizes")
    config.save_pretrained(folder)
    save_shards(state, folder)
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for v in state.values()})
    facts = Facts(
        name=folder.name,
        parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=" and ".join(dtypes),
        plain_error=error,
        wide=wide,
        row_added=rows > len(embeddings),
    )
    return config, facts


def merge_lora(llm: nn.Module) -> None:
    """Add the LoRA matrices to their weights, in the weights' dtype."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in llm.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


def image_row(model: nn.Module) -> tuple[int, int]:
    """The image token's id, the first free one of the tokenizer, and the number of embedding rows this needs."""
    vocabulary = model.tokenizer.get_vocab()
    image_id = vocabulary.get(IMAGE_TOKEN, max(vocabulary.values()) + 1)
    return image_id, max(model.llama_model.get_input_embeddings().weight.shape[0], image_id + 1)


def _grow(weight: Tensor, rows: int) -> Tensor:
    """Add copies of row 0: a new token is never more likely than token 0, so greedy text stays the same."""
    return torch.cat([weight, weight[:1].expand(rows - len(weight), -1)]) if rows > len(weight) else weight


def vision_config(vit: Eva, image_size: int) -> dict:
    block = vit.blocks[0]
    return {
        "hidden_size": vit.num_features,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "patch_size": vit.patch_embed.patch_size[0],
        "image_size": image_size,
        "qkv_bias": block.attn.q_bias is not None,
        "layer_norm_eps": hf_wide.INNER_EPS,
    }


def pixel_options(see) -> dict:
    """Size and normalization of one of our image processors."""
    resize, *_, normalize = see.transform.transforms
    return {"image_size": resize.size[0], "image_mean": list(normalize.mean), "image_std": list(normalize.std)}


def own_settings(model: nn.Module) -> dict:
    """The settings that `import-hf` needs and transformers' config does not have."""
    llm = model.llama_model
    return {key: getattr(model.config, key) for key in OWN_SETTINGS} | {
        "llm_vocab_size": llm.get_input_embeddings().weight.shape[0],
        "llm_generation": llm.generation_config.to_diff_dict(),
        "llm_chat_template": model.tokenizer.chat_template,
    }


@torch.no_grad()
def smallest_variance(model: nn.Module) -> float:
    """The smallest variance of a ViT token's channels, over black, grey, white and noise pictures."""
    from ...models.eva_vit import encode_tokens

    size, generator = model.config.image_size, torch.Generator().manual_seed(0)
    flat = torch.tensor([-1.8, 0.0, 2.1])[:, None, None, None].expand(3, 3, size, size)
    images = torch.cat([flat, torch.randn(1, 3, size, size, generator=generator)])
    return min(
        encode_tokens(model.visual_encoder, image[None]).float().var(-1, unbiased=False).min().item()
        for image in images
    )


def save_shards(state: dict[str, Tensor], folder: Path) -> None:
    """Write model.safetensors, or numbered shards and their index."""
    split = split_torch_state_dict_into_shards(state, max_shard_size=SHARD)
    for file, names in split.filename_to_tensors.items():
        save_weights({name: state[name] for name in names}, folder / file)
    if split.is_sharded:
        write_json({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, folder / INDEX_FILE)
