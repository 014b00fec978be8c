"""The sizes of a model, read from its modules, which are built on the meta device: no weight file, no memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from ...common.errors import ConfigError, did_you_mean
from ...common.memory import empty_weights
from ...common.paths import resolve_path
from ...common.schema import Config, ModelConfig
from ...models.adapters import add_lora, create_projection
from ...models.eva_vit import create_vit, encode_tokens
from ...models.llm import create_llm, llm_source
from ...models.qformer import create_qformer

LLMS = {  # LLaMA's sizes; Vicuna's are the same
    "vicuna-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "vicuna-13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}


@dataclass(frozen=True)
class Part:
    """One part of the model: how many weights it has, and how many of them are trained."""

    parameters: int
    trained: int


@dataclass(frozen=True)
class Tower:
    """What the ViT or the Q-Former does with one picture."""

    flops: int
    outputs: int  # numbers that its layers return, all together
    tokens: int  # that it returns at last


@dataclass(frozen=True)
class Decoder:
    """The LLM. `weights` are those of its layers; embeddings and output head are apart."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    positions: int | None  # the longest text that it was trained to read
    weights: int
    linear: int  # weights in linear layers, which low_resource stores in 8 or 4 bit
    rows: int  # rows of these matrices
    lora_inputs: int  # numbers that each token brings into LoRA's matrices


@dataclass(frozen=True)
class Shapes:
    parts: dict[str, Part]
    vit: Tower
    qformer: Tower | None
    llm: Decoder


def find_llm(config: Config, name: str | None) -> tuple[PreTrainedConfig, str]:
    """Return the LLM's config and a line that says where it comes from.

    Args:
        name: one of LLMS, a folder with config.json, a GGUF file, or None: the LLM of `config`, else Vicuna-13B.
    Raises:
        ConfigError: `name` is none of these.
    """
    if name in LLMS:
        return _llama(name), f"LLM: {name}'s sizes (--llm)"
    written = config.model.llama_model if name is None else name
    path = resolve_path(written)
    if (Path(path) if path.endswith(".gguf") else Path(path) / "config.json").is_file():
        folder, source = llm_source(path)
        return AutoConfig.from_pretrained(folder, local_files_only=True, **source), f"LLM: {written}"
    if name is None:
        note = f"LLM: {written} is not here, so vicuna-13b's sizes are assumed (--llm says otherwise)"
        return _llama("vicuna-13b"), note
    raise ConfigError(f"--llm {name}: neither {' nor '.join(LLMS)} nor a folder with config.json nor a .gguf file"
                      f"{did_you_mean(name, LLMS)}")  # fmt: skip


def _llama(name: str) -> LlamaConfig:
    return LlamaConfig(vocab_size=32000, max_position_embeddings=2048, **LLMS[name])


def read_shapes(model: ModelConfig, llm_config: PreTrainedConfig) -> Shapes:
    """Build each part as MiniGPT4 does, but without weights, and count it."""
    q, side, qformer_tower, parts = model.qformer_kwargs, model.image_size, None, {}
    with empty_weights():
        vit = create_vit(model.vit_model, side, **model.vit_kwargs).to("meta").eval()
        vit_tower = _measure(vit, lambda: encode_tokens(vit, torch.empty(1, 3, side, side, device="meta")))
        parts["visual_encoder"] = _part(_numbers(vit), not model.freeze_vit)
        parts["ln_vision"] = _part(2 * vit.num_features, not model.freeze_vit)
        if model.has_qformer:
            qformer = create_qformer(vit.num_features, **vars(q)).to("meta").eval()
            inputs = {
                "query_embeds": torch.empty(1, model.num_query_token, q.hidden_size, device="meta"),
                "encoder_hidden_states": torch.empty(1, vit_tower.tokens, vit.num_features, device="meta"),
            }
            qformer_tower = _measure(qformer, lambda: qformer(**inputs).last_hidden_state)
            parts["query_tokens"] = _part(inputs["query_embeds"].numel(), not model.freeze_qformer)
            parts["Qformer"] = _part(_numbers(qformer), not model.freeze_qformer)
        llm = create_llm(llm_config, torch.float32)
        decoder = _decoder(llm, model)
        width = q.hidden_size if model.has_qformer else vit.num_features
        parts["llama_proj"] = _part(_numbers(create_projection(width, decoder.hidden, model.proj_layers)), True)
    lora = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    return Shapes(parts | {"llama_model": Part(_numbers(llm), lora)}, vit_tower, qformer_tower, decoder)


def _part(numbers: int, trained: bool) -> Part:
    return Part(numbers, numbers if trained else 0)


def _decoder(llm: nn.Module, model: ModelConfig) -> Decoder:
    """Count the LLM, and add LoRA to it where the config has it."""
    head, layers, sizes = llm.get_output_embeddings(), llm.get_decoder().layers, llm.config.get_text_config()
    linear = [m for m in llm.modules() if isinstance(m, nn.Linear) and m is not head]
    weights = _numbers(layers)
    if model.lora:
        add_lora(llm, model.lora)
    return Decoder(
        hidden=sizes.hidden_size,
        layers=len(layers),
        heads=sizes.num_attention_heads,
        key_heads=getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads,
        head_width=getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads,
        intermediate=getattr(sizes, "intermediate_size", None) or 4 * sizes.hidden_size,
        vocabulary=sizes.vocab_size,
        positions=getattr(sizes, "max_position_embeddings", None),
        weights=weights,
        linear=sum(m.weight.numel() for m in linear),
        rows=sum(m.out_features for m in linear),
        lora_inputs=sum(m.in_features for name, m in llm.named_modules() if ".lora_A." in name),
    )


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _measure(tower: nn.Module, forward: Callable[[], Tensor]) -> Tower:
    """Run one forward on the meta device; count its FLOPs and the numbers that its layers return."""
    outputs = []
    for layer in tower.modules():
        if not (any(layer.children()) or isinstance(layer, (nn.Identity, nn.Dropout))):
            layer.register_forward_hook(lambda layer, args, out: outputs.append(out.numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = forward()
    return Tower(counter.get_total_flops(), sum(outputs), out.shape[1])
