"""`minigpt4 export-hf --cfg-path X --out FOLDER`: write the model as transformers' BLIP-2."""

import argparse
import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, Blip2Config, Blip2ForConditionalGeneration

from ...common.checkpoint import load_exact, named_tensors, save_weights
from ...common.config import load_config
from ...common.errors import CheckpointError, ConfigError
from ...common.paths import resolve_path
from ...common.precision import DTYPES, NAMES
from ...common.schema import Config, ModelConfig
from ...conversation.chat import Chat
from ...conversation.prompts import DEFAULT_QUESTION
from ...models.eva_vit import encode_tokens
from ...models.llm_loading import stored_dtype
from ...tasks import build_model, chat_processor
from ..folders import whole_folder, write_json
from . import wide as hf_wide
from .layout import IMAGE_TOKEN, INDEX_FILE, NORMS_FILE, OWN_SETTINGS, to_hf
from .text import write_generation_config, write_model_card, write_processor

PLAIN_ENOUGH = 1e-5  # allowed relative error of ln_vision in the plain layout; above it, see wide.py
SHARD = "2GB"  # a shard is in memory twice while it is written
TOLERANCE = 1e-4  # allowed difference of fp32 logits, times the largest logit where that is above 1
NEW_TOKENS = 20
VIT_KEYS = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"}
# Notes of the model card
ROW_NEW = "Its row is new, a copy of row 0, and `suppress_tokens` prevents it from being generated."
ROW_FREE = "Its row was not used by the tokenizer."
EPS_PLAIN = (
    "`post_layernorm` had epsilon 1e-5 in training. BLIP-2 has one value for all vision norms, here the ViT's 1e-6, "
    "a relative change of its output of at most {:.0e} (on black, grey, white and noise)."
)
EPS_WIDE = (
    "The vision tower is one attention head wider than the original's, with zeros. Its output varies so little that "
    "BLIP-2's one epsilon for all vision norms would be a relative error of up to {:.0e}; the wider form is exact."
)


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
    check_config(config.model)
    llm_dtype = dtype or NAMES.get(stored_dtype(resolve_path(config.model.llama_model)), "auto")
    as_stored = {"low_resource": False, "device_map": None, "vit_precision": "fp32", "llama_precision": llm_dtype}
    with whole_folder(out) as folder:
        model, see = build_model(replace(config.model, **as_stored), "cpu").eval(), chat_processor(config)
        ours = our_answer(model, see) if check else None
        hf_config, notes = write_weights(model, folder, DTYPES[dtype] if dtype else None)
        processor = write_processor(model, see, folder)
        write_generation_config(model, processor, hf_config, folder)
        del model  # the check needs the memory
        gc.collect()
        exact = notes["dtypes"] == "float32"
        checked = compare(folder, *ours, exact) if ours else "Nothing was compared (--no-check)."
        write_model_card(config, hf_config, folder, name=out.name, checked=checked, **notes)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {notes['parameters']:,} parameters, {notes['dtypes']}, {size / 1e9:.2f} GB. {checked}")


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
def write_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> tuple[Blip2Config, dict]:
    """Write config.json and the weights -> the config, and notes for the model card.

    Only the tensors that change are copied, and one shard at a time.
    """
    llm = model.llama_model
    if model.config.lora:
        merge_lora(llm)
    ends = {id(llm.get_input_embeddings().weight), id(llm.get_output_embeddings().weight)}
    own_rows = len(llm.get_input_embeddings().weight)
    # The image token's id is the first free one of the tokenizer; its row is new where the table ends there.
    vocabulary = model.tokenizer.get_vocab()
    image_id = vocabulary.get(IMAGE_TOKEN, max(vocabulary.values()) + 1)
    rows = max(own_rows, image_id + 1)
    published, seen = {}, set()
    for name, tensor in model.published_tensors().items():
        # a tied head is the embeddings under a second name; LoRA was merged
        if id(tensor) not in seen and ".lora_" not in name:
            seen.add(id(tensor))
            # New rows are copies of row 0: a new token is never more likely than token 0, so greedy text is the same.
            grown = rows > own_rows and id(tensor) in ends
            published[name] = torch.cat([tensor, tensor[:1].expand(rows - own_rows, -1)]) if grown else tensor.detach()
    state = to_hf(published)
    if dtype is not None:
        state = {k: v if k.startswith(("qformer.", "query_tokens")) else v.to(dtype) for k, v in state.items()}
    settings = {key: getattr(model.config, key) for key in OWN_SETTINGS} | {
        "llm_vocab_size": own_rows,
        "llm_generation": llm.generation_config.to_diff_dict(),
        "llm_chat_template": model.tokenizer.chat_template,
    }
    vision, error = vision_config(model), hf_wide.plain_error(smallest_variance(model))
    wide = error > PLAIN_ENOUGH
    if wide:
        settings["vision_width"] = vision["hidden_size"]
        save_weights({k: v for k, v in state.items() if hf_wide.is_norm_weight(k)}, folder / NORMS_FILE)
        state, vision = hf_wide.widen(state, vision)
    tied = llm.config.tie_word_embeddings
    config = Blip2Config(
        vision_config=vision,
        qformer_config=model.Qformer.config.to_dict(),
        text_config=llm.config.to_dict() | {"vocab_size": rows, "_name_or_path": ""},
        num_query_tokens=model.query_tokens.shape[1],
        image_token_index=image_id,
        tie_word_embeddings=tied,
        architectures=["Blip2ForConditionalGeneration"],
        dtype=dtype or llm.dtype,
        minigpt4=settings,
    )
    with torch.device("meta"):
        theirs = named_tensors(Blip2ForConditionalGeneration(config))
    required = {name for name in theirs if not (tied and name.endswith("lm_head.weight"))}
    load_exact(theirs, state, "export-hf: the model", required=required, device="meta")
    config.save_pretrained(folder)
    split = split_torch_state_dict_into_shards(state, max_shard_size=SHARD)
    for file, names in split.filename_to_tensors.items():
        save_weights({name: state[name] for name in names}, folder / file)
    if split.is_sharded:
        write_json({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, folder / INDEX_FILE)
    return config, {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "dtypes": " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})),
        "row_note": ROW_NEW if rows > own_rows else ROW_FREE,
        "eps_note": (EPS_WIDE if wide else EPS_PLAIN).format(error),
    }


def merge_lora(llm: nn.Module) -> None:
    """Add the LoRA matrices to their weights, in the weights' dtype."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in llm.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()


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
        "layer_norm_eps": hf_wide.INNER_EPS,
    }


def smallest_variance(model: nn.Module) -> float:
    """The smallest variance of a ViT token's channels, over black, grey, white and noise pictures."""
    size, generator = model.config.image_size, torch.Generator().manual_seed(0)
    pictures = [torch.full((1, 3, size, size), value) for value in (-1.8, 0.0, 2.1)]
    pictures.append(torch.randn(1, 3, size, size, generator=generator))
    return min(encode_tokens(model.visual_encoder, p).float().var(-1, correction=0).min().item() for p in pictures)


# -- the check ---------------------------------------------------------------------------------------------------------


def picture() -> Image.Image:
    """Coarse noise, so that every image token is different."""
    noise = np.random.default_rng(0).integers(0, 256, (14, 21, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((300, 200))


@torch.no_grad()
def our_answer(model, vis_processor) -> tuple[Tensor, str]:
    """Our logits (T, V) of the prompt, and the greedy answer."""
    chat = Chat(model, vis_processor, model.config.conv_template)
    conv = chat.new_conversation()
    chat.upload_img(picture(), conv)
    chat.ask(DEFAULT_QUESTION, conv)
    logits = model.llama_model(inputs_embeds=model.embed_segments(conv.segments())).logits[0].float()
    return logits, chat.answer(conv, do_sample=False, max_new_tokens=NEW_TOKENS)[0]


@torch.no_grad()
def compare(folder: Path, our_logits: Tensor, our_text: str, exact: bool) -> str:
    """Open the folder with transformers and describe the difference in one sentence.

    Args:
        exact: all weights are stored in fp32; then a difference above TOLERANCE or another text is an error.
    Raises:
        CheckpointError: the folder does not hold the same model.
    """
    theirs = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    question = [{"type": "image"}, {"type": "text", "text": DEFAULT_QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    inputs = processor(images=[picture()], text=[prompt])
    logits = theirs(**inputs).logits[0, :, : our_logits.shape[1]].float()
    greedy = theirs.generation_config
    greedy.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=NEW_TOKENS)
    output = theirs.generate(**inputs, generation_config=greedy, tokenizer=processor.tokenizer)
    del theirs
    gc.collect()
    if logits.shape != our_logits.shape:
        raise CheckpointError(f"the prompt has {len(logits)} tokens in the folder, {len(our_logits)} in our model")
    error, allowed = (logits - our_logits).abs().max().item(), TOLERANCE * max(1.0, our_logits.abs().max().item())
    same_text = processor.answers(output, inputs) == [our_text]
    text = f"the greedy answer of {NEW_TOKENS} tokens was {'the same' if same_text else 'different'}"
    if exact and not (error <= allowed and same_text):
        raise CheckpointError(
            f"opened with transformers, the folder's logits differ by up to {error:.1e} ({allowed:.1e} is allowed), "
            f"and {text}; no folder was written (--no-check writes it without this check)"
        )
    return (
        f"Opened with transformers and compared with the model it was made of, on one picture: "
        f"the logits differ by at most {error:.1e}, {text}."
    )
