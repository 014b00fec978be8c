"""The model at full size with random weights that are made on the device, and made data: no file is needed."""

import gc
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import torch
import webdataset as wds
from PIL import Image
from torch import nn
from transformers import LlamaConfig

from minigpt4 import conversation, tasks  # noqa: F401  (fill the registries)
from minigpt4.checkup.plan.shapes import LLMS
from minigpt4.common.config import load_config
from minigpt4.common.gpus import GPUS, Gpu, card_called
from minigpt4.common.logger import read_log
from minigpt4.common.precision import resolve_precision
from minigpt4.common.schema import Config
from minigpt4.models.mini_gpt4 import MiniGPT4
from minigpt4.models.shapes import MiniGPT4Shapes
from minigpt4.models.unpadded import leave_padding_out
from minigpt4.runners.runner import Runner

from .setting import GIB, Setting

CONFIGS = {
    "stage 1": "train_configs/minigpt4_stage1_pretrain.yaml",
    "stage 2": "train_configs/minigpt4_stage2_finetune.yaml",
    "chat": "eval_configs/minigpt4_eval.yaml",
}
SMALL = (
    "model.vit_kwargs={depth: 2, embed_dim: 64, num_heads: 2}", "model.image_size=28", "model.num_query_token=4",
    "model.qformer_kwargs={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48}",
)  # fmt: skip
SMALL_LLM = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
WARM_UP = 5  # steps that are not counted: the first one counts FLOPs, and kernels are chosen


def read_config(setting: Setting, what: str, *options: str) -> Config:
    """The project's own config for a stage or the chat, at full size or small."""
    size = ()
    if setting.small:
        config = load_config(CONFIGS[what], mode="show")
        size = [f"datasets.{name}.vis_processor.train.image_size=28" for name in config.datasets]
        size += [*SMALL, "run.batch_size_train=2"]
    return load_config(CONFIGS[what], [*size, *options], mode="show")


class StandInTokenizer:
    """One id for each word, sign and newline: about LLaMA's count for plain English, without a tokenizer's files."""

    bos_token_id, eos_token_id, pad_token_id, pad_token = 1, 2, 2, "</s>"

    def __call__(self, text: str | list[str], add_special_tokens: bool = False) -> dict[str, list]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [3] * len(re.findall(r"\n|\w+|[^\w\s]+", text))}


def llm_config(setting: Setting, layers: int | None = None) -> LlamaConfig:
    """LLaMA-13B's sizes, with fewer layers if asked."""
    sizes = SMALL_LLM if setting.small else LLMS["vicuna-13b"]
    sizes = sizes | ({"num_hidden_layers": min(layers, sizes["num_hidden_layers"])} if layers else {})
    vocabulary = 512 if setting.small else 32000
    return LlamaConfig(vocab_size=vocabulary, max_position_embeddings=2048, rms_norm_eps=1e-6, **sizes)


def random_model(setting: Setting, config: Config, llm: LlamaConfig, training: bool = True) -> MiniGPT4:
    """The real model class. For a chat the LLM stays on the meta device: another takes its place."""
    precision = resolve_precision(config.model, setting.device, config.run if training else None)
    model = MiniGPT4Shapes(config.model, llm, precision)
    for name, part in model.named_children():
        if training or name != "llama_model":
            fill(part, setting.device)
    queries = torch.randn(model.query_tokens.shape, device=setting.device) * 0.02
    model.query_tokens = nn.Parameter(queries, model.query_tokens.requires_grad)
    if training:
        attention = config.model.attn_implementation
        auto = "sdpa" if setting.cuda else "eager"
        model.llama_model.set_attn_implementation(auto if attention == "auto" else attention)
        leave_padding_out(model.llama_model)
    model.tokenizer = StandInTokenizer()
    # The planner counts the longest instruction.
    model.prompt_list = model.prompt_list and [max(model.prompt_list, key=len)]
    return model.train()


@torch.no_grad()
def fill(module: nn.Module, device: torch.device) -> None:
    """Random weights on `device` for a module of the meta device."""
    for part in module.modules():
        norm = "Norm" in type(part).__name__
        for name, parameter in part.named_parameters(recurse=False):
            tensor = torch.empty_like(parameter, device=device)
            tensor = tensor.fill_(float(name == "weight")) if norm else tensor.normal_(std=0.02)
            part.register_parameter(name, nn.Parameter(tensor, parameter.requires_grad))
        if type(part).__name__.endswith("RotaryEmbedding"):  # its frequencies are computed, and stay fp32
            part.__init__(config=part.config)
        for name, buffer in part.named_buffers(recurse=False):  # of the others only EVA's k_bias, which is zero
            part._buffers[name] = torch.zeros_like(buffer, device=device) if buffer.is_meta else buffer.to(device)


# -- data -------------------------------------------------------------------------------------------------------------


def write_data(setting: Setting, words: int, shards: int) -> Path:
    """JPEGs of 256 px as img2dataset makes them, with captions of `words` words: cc_sbu/*.tar for stage 1, align/ for
    stage 2."""
    folder, caption = setting.folder / f"data_{words}", " ".join(["ball"] * words)
    (folder / "cc_sbu").mkdir(parents=True)
    (folder / "align" / "image").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(16):
        coarse = torch.randint(0, 256, (1, 3, 32, 32), generator=generator).float()
        pixels = nn.functional.interpolate(coarse, size=256, mode="bilinear")[0].permute(1, 2, 0).byte().numpy()
        Image.fromarray(pixels).save(folder / "align" / "image" / f"{i}.jpg", quality=90)
    pictures = [file.read_bytes() for file in sorted((folder / "align" / "image").iterdir())]
    for shard in range(shards):
        with wds.TarWriter(str(folder / "cc_sbu" / f"{shard:05}.tar")) as tar:
            for i in range(64):
                tar.write({"__key__": f"{i:06}", "jpg": pictures[i % 16], "json": {"caption": caption}})
    annotations = [{"image_id": str(i), "caption": caption} for i in range(16)]
    (folder / "align" / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return folder


class MadeBatches:
    """A task whose batches are made before, all alike: nothing is loaded."""

    def __init__(self, batch_size: int, image_size: int, words: int):
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
        text = " ".join(["ball"] * words)
        self.samples = {"image": image, "text_input": [text] * batch_size, "bad": [], "hopeless": False}

    def build_loader(self, rank: int, world_size: int, seed: int, before=None) -> "MadeBatches":
        return self

    def __iter__(self):
        while True:
            yield "made", dict(self.samples)

    def state_dict(self) -> dict:
        return {}

    def build_batch(self, model, samples: dict) -> dict:
        return model.build_batch(samples)

    def train_step(self, model, batch: dict) -> torch.Tensor:
        return model(batch)["loss"]


# -- measuring --------------------------------------------------------------------------------------------------------


def train(setting: Setting, config: Config, task, model: MiniGPT4, name: str, steps: int, **run) -> list[dict]:
    """The rows of log.jsonl of a run of so many steps."""
    folder = setting.folder / name
    run = replace(
        config.run, device=setting.device.type, output_dir=str(folder), max_epoch=1, iters_per_epoch=steps, log_freq=1,
        warmup_steps=0, resume="never", **run,
    )  # fmt: skip
    if setting.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    Runner(replace(config, run=run), task, model, setting.device).train()
    return read_log(folder / "log.jsonl")


def summary(rows: list[dict]) -> dict:
    """Medians over the steps after the warm-up."""
    late = rows[min(WARM_UP, len(rows) // 2) :]
    keys = ("samples_per_second", "tokens_per_second", "data_wait_share", "padding_share", "mfu")
    values = {key: [row[key] for row in late if key in row] for key in keys}
    found = {key: statistics.median(of_key) for key, of_key in values.items() if of_key}
    skipped = sum("skipped" in row for row in rows)
    return found | {"last_loss": rows[-1].get("loss")} | ({"wrong": f"{skipped} steps were skipped"} if skipped else {})


def memory_used(device: torch.device) -> float:
    """GiB of the card that this process took at its peak, the CUDA context among them."""
    free, total = torch.cuda.mem_get_info(device)
    peak = total - free - torch.cuda.memory_reserved(device) + torch.cuda.max_memory_reserved(device)
    return round(peak / GIB, 2)


def card_of(setting: Setting) -> Gpu | None:
    """What the planner knows of this device."""
    if not setting.cuda:
        return GPUS["cpu"]
    card = torch.cuda.get_device_properties(setting.device)
    return card_called(card.name, card.total_memory / GIB)


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
