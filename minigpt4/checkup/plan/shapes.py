"""The sizes of a model, read from its modules, which are built on the meta device: no weight file, no memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from ...common.checkpoint import empty_weights
from ...common.errors import ConfigError, did_you_mean
from ...common.paths import resolve_path
from ...common.schema import Config, LoraConfig, ModelConfig
from ...models.adapters import add_lora, create_projection
from ...models.eva_vit import create_vit, encode_tokens
from ...models.llm import create_llm, llm_source
from ...models.qformer import create_qformer

LLMS = {  # LLaMA's sizes; Vicuna's are the same
    "vicuna-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "vicuna-13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}


def find_llm(config: Config, name: str | None) -> tuple[PreTrainedConfig, str]:
    """The LLM's config, and a line that says where it comes from. `name` is one of LLMS, a folder with config.json, a
    GGUF file, or None: the LLM of `config`, else Vicuna-13B. Raises ConfigError for any other name."""
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


@dataclass(frozen=True)
class Part:
    """One part of the model."""

    parameters: int  # how many weights it has
    trained: int  # how many of them are trained


class Shapes:
    """A model: `parts` {name: Part}, `vit` and `qformer` (Tower; None without Q-Former), `llm` (Decoder)."""

    def __init__(self, model: ModelConfig, llm_config: PreTrainedConfig):
        """Build each part as MiniGPT4 does, but without weights, and count it."""
        q, side = model.qformer_kwargs, model.image_size
        self.qformer, parts = None, {}  # of each part, numbers and whether they are trained
        with empty_weights():
            vit = create_vit(model.vit_model, side, **model.vit_kwargs).to("meta").eval()
            self.vit = Tower(vit, lambda: encode_tokens(vit, torch.empty(1, 3, side, side, device="meta")))
            parts["visual_encoder"] = _numbers(vit), not model.freeze_vit
            parts["ln_vision"] = 2 * vit.num_features, not model.freeze_vit
            if model.has_qformer:
                qformer = create_qformer(vit.num_features, **vars(q)).to("meta").eval()
                queries = torch.empty(1, model.num_query_token, q.hidden_size, device="meta")
                patches = torch.empty(1, self.vit.tokens, vit.num_features, device="meta")
                self.qformer = Tower(qformer, lambda: qformer(queries, encoder_hidden_states=patches).last_hidden_state)
                parts["query_tokens"] = queries.numel(), not model.freeze_qformer
                parts["Qformer"] = _numbers(qformer), not model.freeze_qformer
            llm = create_llm(llm_config, torch.float32)
            self.llm = Decoder(llm, model.lora)
            width = q.hidden_size if model.has_qformer else vit.num_features
            parts["llama_proj"] = _numbers(create_projection(width, self.llm.hidden, model.proj_layers)), True
        self.parts = {name: Part(numbers, numbers * trained) for name, (numbers, trained) in parts.items()}
        lora = sum(p.numel() for p in llm.parameters() if p.requires_grad)
        self.parts["llama_model"] = Part(_numbers(llm), lora)
        self.trained = sum(part.trained for part in self.parts.values())


class Tower:
    """What the ViT or the Q-Former does with one picture, counted in one forward on the meta device."""

    def __init__(self, tower: nn.Module, forward: Callable[[], Tensor]):
        outputs = []
        for layer in tower.modules():
            if not (any(layer.children()) or isinstance(layer, (nn.Identity, nn.Dropout))):
                layer.register_forward_hook(lambda layer, args, out: outputs.append(out.numel()))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.tokens = forward().shape[1]  # that it returns
        self.flops = counter.get_total_flops()
        self.outputs = sum(outputs)  # numbers that its layers return, all together


class Decoder:
    """Sizes of the LLM; LoRA is added to it where the config has it."""

    def __init__(self, llm: nn.Module, lora: LoraConfig | None):
        head, layers, sizes = llm.get_output_embeddings(), llm.get_decoder().layers, llm.config.get_text_config()
        linear = [m for m in llm.modules() if isinstance(m, nn.Linear) and m is not head]
        self.hidden, self.vocabulary, self.layers = sizes.hidden_size, sizes.vocab_size, len(layers)
        self.intermediate = getattr(sizes, "intermediate_size", None) or 4 * self.hidden
        self.heads = sizes.num_attention_heads
        self.key_heads = getattr(sizes, "num_key_value_heads", None) or self.heads
        self.head_width = getattr(sizes, "head_dim", None) or self.hidden // self.heads
        self.positions = getattr(sizes, "max_position_embeddings", None)  # the longest text that it can read
        self.weights = _numbers(layers)  # without embeddings and output head
        self.linear = sum(m.weight.numel() for m in linear)  # of these, what low_resource stores in 8 or 4 bit
        self.rows = sum(m.out_features for m in linear)
        if lora:
            add_lora(llm, lora)
        # Numbers that each token brings into LoRA's first matrices, all layers together.
        self.lora_inputs = sum(m.in_features for name, m in llm.named_modules() if ".lora_A." in name)


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
