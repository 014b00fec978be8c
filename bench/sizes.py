"""The models, batches and limits that rows measure.

Size S: ViT 192 x 6 (patch 16), Q-Former 192 x 4, LLaMA 576 x 8 with a vocabulary of 32,000; random weights.
"""

import random
from contextlib import nullcontext

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from minigpt4.common.config import load_config
from minigpt4.common.paths import PROJECT
from minigpt4.common.precision import Precision
from minigpt4.common.schema import ModelConfig, QFormerConfig
from minigpt4.conversation.chat import Chat
from minigpt4.convert.hf.export_hf import vision_config
from minigpt4.convert.hf.layout import blip2_with, to_hf
from minigpt4.models.batch import full_labels, lay_out_batch
from minigpt4.models.mini_gpt4 import MiniGPT4
from minigpt4.serve import build_chat

from .timer import NotRun, Setting, Way

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PAD, QUERIES = 2, 32
STAGES = {"stage 1": (8, 1, 0, 26), "stage 2": (4, 9, 14, 130)}  # rows, ids before the image, after it, of the text


class SizeS(MiniGPT4):
    """Random weights. In bf16 it trains under autocast, as with `run.amp`."""

    def __init__(self, setting: Setting, dtype: str = "fp32"):
        quick, self.dtype = setting.quick, DTYPES[dtype]
        width, layers, heads = (32, 2, 2) if quick else (192, 6, 3)
        qformer = QFormerConfig(width, 2 if quick else 4, heads, 4 * width, dropout=0.0)
        vit = {"patch_size": 16, "embed_dim": width, "depth": layers, "num_heads": heads, "mlp_ratio": 4}
        llm = (48, 96, 2, 2) if quick else (576, 1536, 8, 9)
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        self.vocabulary = 500 if quick else 32000
        self.llm_config = LlamaConfig(vocab_size=self.vocabulary, **dict(zip(names, llm, strict=True)))
        config = ModelConfig(
            vit_kwargs=vit, qformer_kwargs=qformer, num_query_token=QUERIES, image_size=32 if quick else 224
        )
        precision = Precision(None if dtype == "fp32" else self.dtype, self.dtype, self.dtype, "cpu")
        super().__init__(config, precision=precision)

    def load_llm(self, device: torch.device, apart: bool):
        """A LLaMA with random weights, and a tokenizer that has an id for each of its words."""
        words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, self.vocabulary - 1))]  # the last: transformers'
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        llm = AutoModelForCausalLM.from_config(self.llm_config, dtype=self.precision.llm, attn_implementation="eager")
        llm.generation_config.eos_token_id = None  # answers go on to their longest
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
        return llm.requires_grad_(False).eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)

    def autocast(self):
        return nullcontext() if self.dtype == torch.float32 else torch.autocast("cpu", self.dtype)


def blip2_of(model: SizeS) -> Blip2ForConditionalGeneration:
    """transformers' BLIP-2 with the very weights of `model`: the same tensors, so also the same gradients."""
    config = Blip2Config(
        vision_config=vision_config(model), qformer_config=model.Qformer.config.to_dict(),
        text_config=model.llm_config.to_dict(), num_query_tokens=QUERIES, image_token_index=model.vocabulary - 1,
    )  # fmt: skip
    state = {name: tensor.detach() for name, tensor in to_hf(model.published_tensors()).items()}
    blip2 = blip2_with(config, state, "bench").eval().requires_grad_(False)
    blip2.language_projection.load_state_dict(model.llama_proj.state_dict(keep_vars=True), assign=True)
    blip2.language_projection.requires_grad_(True)
    for module in blip2.modules():  # frequencies were on the meta device
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.__init__(config=module.config)
    return blip2


def batch_of(model: SizeS, stage: str, texts: list[int] | None = None, quick: bool = False) -> dict[str, Tensor]:
    """The input of `model`'s forward: equally long rows of a stage, or one row for each length of `texts`."""
    rows, before, after, length = STAGES[stage]
    lengths = texts or [length] * (2 if quick else rows)

    def ids(count: int) -> list[int]:
        return torch.randint(3, model.vocabulary - 1, (count,)).tolist()

    prompt = [1, *ids(before - 1)], ids(after)
    image = torch.randn(len(lengths), 3, model.config.image_size, model.config.image_size)
    return {"image": image, **lay_out_batch([prompt] * len(lengths), [ids(n) for n in lengths], QUERIES, PAD)}


def blip2_batch(model: SizeS, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch for transformers."""
    ids = batch["input_ids"].clone()
    ids.view(-1)[batch["image_positions"]] = model.vocabulary - 1
    mask = batch["attention_mask"]
    return {"pixel_values": batch["image"], "input_ids": ids, "attention_mask": mask, "labels": full_labels(batch)}


def plain_loss(model: MiniGPT4, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a plain loop: padded rows, and the logits of all positions."""
    inputs = {"inputs_embeds": model.embed_batch(batch), "attention_mask": batch["attention_mask"]}
    return model.llama_model(**inputs, labels=full_labels(batch)).loss


def description_lengths(rows: int) -> list[int]:
    """Tokens of made stage-2 texts, like those of cc_sbu_align: 80 words on average, 1.3 tokens a word, 160 at most."""
    draw = random.Random(0)
    return [max(20, min(160, round(1.3 * draw.lognormvariate(4.32, 0.35)))) for _ in range(rows)]


def small_chat(setting: Setting, *options: str) -> Chat:
    """The small model that ships, with these options of its config; a quick one of size S."""
    if setting.quick:
        return Chat(SizeS(setting), lambda image: torch.zeros(3, 32, 32))
    if not (PROJECT / "weights/smollm2-135m-instruct").is_dir():
        raise NotRun("`minigpt4 weights` makes the small model")
    return build_chat(load_config("eval_configs/tiny_eval.yaml", options, mode="chat"))


# -- the machine's limits ---------------------------------------------------------------------------------------------


def products(model: nn.Module, tokens: int, targets: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrix products of the LLM of `model`, by name: (rows x width) and (width x columns)."""
    llm = model.llama_model.config
    wide, high = llm.hidden_size, llm.intermediate_size
    shapes = {"attention": (tokens, wide, wide), "MLP up": (tokens, wide, high), "MLP down": (tokens, high, wide),
              "head": (targets, wide, llm.vocab_size)}  # fmt: skip
    return {
        f"{name} {m} x {k} x {n}": (torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype).T)
        for name, (m, k, n) in shapes.items()
    }


def times(a: Tensor, b: Tensor) -> int:
    """How often a product is repeated to be timed: half a GFLOP or more."""
    return max(1, int(2.5e8 / (a.numel() * b.shape[1])))


def product_ways(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Way]:
    """For the timer: each product, repeated."""
    return {name: lambda a=a, b=b: [a @ b for _ in range(times(a, b))] for name, (a, b) in pairs.items()}


def gflops(seconds: dict[str, float], pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """GFLOP/s of each product, of what the timer measured."""
    return {name: 2e-9 * a.numel() * b.shape[1] * times(a, b) / seconds[name] for name, (a, b) in pairs.items()}


def bandwidth_ways(quick: bool) -> tuple[dict[str, Way], float]:
    """For the timer: a copy, and a product with a vector, which reads only; and the GB that each of them moves."""
    side = 256 if quick else 8192  # 256 MiB in fp32, far more than a cache holds
    matrix, vector = torch.ones(side, side), torch.ones(side)
    half, target = matrix[: side // 2], torch.empty(side // 2, side)
    ways = {"copy": lambda: target.copy_(half), "read": lambda: torch.mv(matrix, vector)}
    return ways, 4e-9 * side**2
