"""The real MiniGPT4 at full size on the meta device: its parameters, and what a training step and a chat cost."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from transformers import AutoConfig, DynamicCache, LlamaConfig, PreTrainedConfig

from ...common.checkpoint import named_tensors
from ...common.errors import ConfigError, did_you_mean
from ...common.gpus import Gpu, Work
from ...common.paths import resolve_path
from ...common.precision import DTYPES, Precision
from ...common.schema import Config, ModelConfig
from ...conversation.chat_template import with_training_form
from ...conversation.generation import Decoding
from ...models.eva_vit import encode_tokens
from ...models.llm import llm_source
from ...models.llm_loading import bits_of
from ...models.mini_gpt4 import MiniGPT4
from ...models.prompting import read_prompts
from ...models.published import PARTS
from ...models.shapes import MiniGPT4Shapes
from . import original as plan_original
from .meter import MetaRules, Meter

LLMS = {  # LLaMA's sizes; Vicuna's are the same
    "vicuna-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "vicuna-13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}
MAX_CONTEXT = 2000  # tokens of a chat's context and answer together, as Chat's default
FIRST_CONTEXT, TURN = 100, 330  # tokens: system text, picture and first question; then an answer and a question


@dataclass(frozen=True, eq=False)
class Workload:
    """What is counted: a model, and how the device runs it."""

    model: ModelConfig  # with the precisions written out
    llm: PreTrainedConfig
    autocast: torch.dtype | None
    fused: bool  # attention by a fused kernel (CUDA), or written out
    tokens: int  # text tokens of a row in training, padding included
    prompt: str  # the longest of the instructions
    original: bool = False  # the original's code instead of ours
    features: bool = False  # every dataset has build_info.features, so in training the ViT does not run

    @cached_property
    def _key(self) -> str:
        return repr((self.llm.to_dict(), {k: v for k, v in vars(self).items() if k != "llm"}))

    def __hash__(self) -> int:  # the same work is counted once
        return hash(self._key)

    def __eq__(self, other) -> bool:
        return self._key == other._key

    @property
    def bits(self) -> int:
        """Bits of a weight of the LLM's linear layers."""
        return bits_of(self.model.low_resource) or 8 * DTYPES[self.model.llama_precision].itemsize


@dataclass(frozen=True)
class Part:
    """One module of the model."""

    name: str
    parameters: int
    trained: int
    weights: int  # bytes, buffers included


@dataclass(frozen=True)
class Step:
    """Forward and backward of one batch on one device. Bytes, apart from the weights."""

    work: Work
    kept: int  # alive between forward and backward
    peak: int
    reserved: int  # what the CUDA allocator takes for it


@dataclass(frozen=True)
class ChatCost:
    """A conversation that grows to `contexts[-1]` tokens, read anew each turn. Bytes, apart from the weights."""

    contexts: tuple[int, ...]
    cache: int  # keys and values at the longest context and answer
    peak: int
    reserved: int
    first: Work  # a picture is encoded and the first context read
    token: Work  # one token at the longest context


class StandInTokenizer:
    """One id for each word, sign and newline: about LLaMA's count for plain English. No tokenizer need be on disk."""

    bos_token_id, eos_token_id, pad_token_id, pad_token = 1, 2, 2, "</s>"

    def __call__(self, text: str | list[str], add_special_tokens: bool = False) -> dict[str, list]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [3] * len(re.findall(r"\n|\w+|[^\w\s]+", text))}


def find_llm(config: Config, name: str | None) -> tuple[PreTrainedConfig, str]:
    """The LLM's sizes, and a line that says where they come from.

    Args:
        name: one of LLMS, a folder with config.json or a GGUF file, or None: the config's own, else Vicuna-13B.
    """
    if name in LLMS:
        return _llama(name), f"LLM: {name}'s sizes (--llm)"
    if name is not None:
        if (found := _read_llm(name)) is None:
            raise ConfigError(f"--llm {name}: neither {' nor '.join(LLMS)} nor a folder with config.json nor a .gguf "
                              f"file{did_you_mean(name, LLMS)}")  # fmt: skip
        return found, f"LLM: {name}"
    folder = config.model.llama_model
    if (found := _read_llm(folder)) is not None:
        return found, f"LLM: {folder}"
    return _llama("vicuna-13b"), f"LLM: {folder} is not here, so vicuna-13b's sizes are assumed (--llm says otherwise)"


def _read_llm(path: str) -> PreTrainedConfig | None:
    """The config of model.llama_model; None when there is no such folder or GGUF file."""
    path = resolve_path(path)
    if not (Path(path) if path.endswith(".gguf") else Path(path) / "config.json").is_file():
        return None
    folder, source = llm_source(path)
    return AutoConfig.from_pretrained(folder, local_files_only=True, **source)


def _llama(name: str) -> LlamaConfig:
    return LlamaConfig(vocab_size=32000, max_position_embeddings=2048, rms_norm_eps=1e-6, **LLMS[name])


def workload(config: Config, llm: PreTrainedConfig, gpu: Gpu, tokens: int | None = None, original=False) -> Workload:
    """How `gpu` would run the config: what `auto` means there, and which kernels there are."""
    model, run = with_training_form(config.model, None), config.run
    half = "bf16" if gpu.bf16 and not original else "fp16"
    on_cpu = gpu.kind == "cpu"
    if model.llama_precision == "auto":
        model = replace(model, llama_precision="fp32" if on_cpu and not gpu.bf16 else half)
    if on_cpu and (model.vit_precision == "fp16" or not gpu.bf16):
        model = replace(model, vit_precision="fp32")
    amp = None
    if run.amp and not (on_cpu and run.amp_dtype == "auto"):
        amp = DTYPES[half if run.amp_dtype == "auto" else run.amp_dtype]
    files = [(model.prompt_path, "model.prompt_path")]
    files += [(d.prompt_path, f"datasets.{name}.prompt_path") for name, d in config.datasets.items()]
    prompts = [p for path, key in files if path for p in read_prompts(path, model.prompt_template, key)]
    features = bool(config.datasets) and all(d.build_info.features for d in config.datasets.values())
    return Workload(
        model, llm, amp, not on_cpu, tokens or model.max_txt_len, max(prompts, key=len, default=""), original, features
    )


@lru_cache(maxsize=4)
def _build(load: Workload) -> MiniGPT4:
    precision = Precision(load.autocast, DTYPES[load.model.llama_precision], DTYPES[load.model.vit_precision], "meta")
    model = MiniGPT4Shapes(load.model, load.llm, precision)
    model.tokenizer = StandInTokenizer()
    if load.original:
        plan_original.as_it_ran(model)
    else:
        model.llama_model.set_attn_implementation("sdpa" if load.fused else "eager")
    return model


def _low_bit_weights(model: MiniGPT4, load: Workload) -> dict[Tensor, float]:
    """The LLM's weights that low_resource stores in 8 or 4 bits -> bytes of each number, its scales included.

    All linear layers but the output head; 8 bits have a fp32 scale for each row, 4 bits for each 64 numbers.
    """
    if load.bits >= 16:
        return {}
    head = model.llama_model.get_output_embeddings()
    linear = [m for m in model.llama_model.modules() if isinstance(m, nn.Linear) and m is not head]
    frozen = [m.weight for m in linear if not m.weight.requires_grad]
    return {w: load.bits / 8 + 4 / (w.shape[1] if load.bits == 8 else 64) for w in frozen}


@lru_cache(maxsize=16)
def count_parts(load: Workload) -> tuple[Part, ...]:
    """Parameters and weights of each part of the model."""
    model, parts = _build(load), []
    low = {id(w): size for w, size in _low_bit_weights(model, load).items()}
    for name in PARTS:
        part = getattr(model, name, None)
        if part is None:
            continue
        tensors = {id(t): t for t in ([part] if isinstance(part, nn.Parameter) else named_tensors(part).values())}
        if isinstance(part, nn.Module):
            tensors |= {id(t): t for t in part.buffers()}
        weights = [t for t in tensors.values() if isinstance(t, nn.Parameter)]
        parts.append(
            Part(
                name,
                sum(t.numel() for t in weights),
                sum(t.numel() for t in weights if t.requires_grad),
                int(sum(t.numel() * low.get(id(t), t.itemsize) for t in tensors.values())),
            )
        )
    return tuple(parts)


@lru_cache(maxsize=16)
def count_layers(load: Workload) -> tuple[int, int]:
    """Bytes of all layers of the LLM, which FSDP parts among the processes, and of the largest one."""
    layers = _build(load).llama_model.get_decoder().layers
    low = {id(w): size for w, size in _low_bit_weights(_build(load), load).items()}
    sizes = [int(sum(p.numel() * low.get(id(p), p.itemsize) for p in layer.parameters())) for layer in layers]
    return sum(sizes), max(sizes)


@lru_cache(maxsize=256)
def count_step(load: Workload, batch: int) -> Step:
    """Forward and backward of `batch` rows, each with a picture (or its features) and `load.tokens` text tokens."""
    model = _build(load).train()
    model.zero_grad()
    shape = _feature_shape(load) if load.features else (3, load.model.image_size, load.model.image_size)
    image = torch.empty(batch, *shape, device="meta")
    prompts = [load.prompt] if load.prompt else None
    with _metered(model, load):  # not counted: the CPU does it
        laid_out = model.build_batch({"image": image, "text_input": ["a " * load.tokens] * batch, "prompts": prompts})
    with _metered(model, load) as meter:
        laid_out["image"] = torch.empty_like(image)  # this one counts
        loss = plan_original.loss(model, laid_out) if load.original else model(laid_out)["loss"]
        kept = meter.live
        _backward(loss)
    model.zero_grad()
    return Step(meter.work, kept, meter.peak, meter.allocator.reserved)


@lru_cache(maxsize=16)
@torch.no_grad()
def _feature_shape(load: Workload) -> tuple[int, int]:
    """(N, D_vit): what the ViT makes of one picture."""
    model, size = _build(load), load.model.image_size
    with _metered(model, load):
        return tuple(encode_tokens(model.visual_encoder, torch.empty(1, 3, size, size, device="meta")).shape[1:])


def _backward(loss: Tensor) -> None:
    """`loss.backward()` without leaving MetaRules, as every public function does: recomputed layers need it."""
    one = torch.ones_like(loss)
    _engine_run_backward((loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)


@lru_cache(maxsize=16)
@torch.no_grad()
def count_chat(load: Workload) -> ChatCost:
    """A conversation about one picture, to its longest."""
    model = _build(load).eval()
    llm, size = model.llama_model, load.model.image_size
    config = llm.config.get_text_config()
    longest = min(MAX_CONTEXT, getattr(config, "max_position_embeddings", None) or MAX_CONTEXT)
    last = max(longest - Decoding().max_new_tokens, 1)
    contexts = (*range(FIRST_CONTEXT, last, TURN), last)
    options = {} if load.original else {"logits_to_keep": 1}  # the original made logits for the whole context
    with _metered(model, replace(load, autocast=None)) as meter:

        def read(length: int, before: int, cache: DynamicCache) -> None:
            embeds = torch.empty(1, length, config.hidden_size, dtype=llm.dtype, device="meta")
            mask = torch.ones(1, before + length, dtype=torch.long, device="meta")
            llm(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True, **options)

        model.encode_img(torch.empty(1, 3, size, size, device="meta"))
        for context in contexts:
            cache = DynamicCache(config=llm.config)
            held, before = meter.live, context
            read(context, 0, cache)
            if context == contexts[0]:
                first = Work(meter.work)
            held = meter.live - held
        done = Work(meter.work)
        read(1, before, cache)
        token = meter.work - done
    grown = int(held * longest / last)
    return ChatCost(contexts, grown, max(meter.peak, grown), max(meter.allocator.reserved, grown), first, token)


@contextmanager
def _metered(model: MiniGPT4, load: Workload) -> Iterator[Meter]:
    low = _low_bit_weights(model, load)
    shrunk = {w.untyped_storage()._cdata: size / w.itemsize for w, size in low.items()}
    keeps = frozenset(map(id, low)) if load.bits == 8 and load.fused else frozenset()
    meter = Meter([*model.parameters(), *model.buffers()], shrunk)
    with MetaRules(load.autocast, keeps).active(), meter:
        yield meter
