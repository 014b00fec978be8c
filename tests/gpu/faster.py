"""Part 5: what makes the training step faster, and whether it is right: each way against plain, on the same batches."""

import math
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, partialmethod
from importlib.util import find_spec
from unittest import mock

import torch
from torch import nn

from minigpt4.models.unpadded import leave_padding_out

from .full import WARM_UP, MadeBatches, llm_config, random_model, read_config, train
from .setting import NotRun, Setting

LAYERS = 12  # of LLaMA-13B's 40: what a layer gains, the whole gains
NEAR = 2e-2  # relative difference of the losses
WAYS = {
    "plain": {},
    "AdamW fused": {"optimizer_kwargs": {"fused": True}},
    "eager attention": {"attention": "eager"},
    "flash attention 2": {"attention": "flash_attention_2"},
    "padding computed too": {"padding": True},
    "torch.compile": {"compile": True},  # the last: layers stay compiled
}


def measurements(setting: Setting) -> dict[str, Callable[[], dict]]:
    bench = Bench(setting)
    return {**{way: partial(bench.measure, way) for way in WAYS}, "the fastest that is right": bench.fastest}


class Bench:
    """Stage 1 of a 13B-shaped LLM. Plain: SDPA on CUDA (eager on a CPU), AdamW not fused, nothing compiled."""

    def __init__(self, setting: Setting):
        self.setting, self.model, self.losses, self.seconds = setting, None, {}, {}
        self.steps = 4 if setting.small else 12

    def measure(self, way: str) -> dict:
        keys = {"optimizer_kwargs": {"fused": False}} | WAYS[way]
        attention = keys.pop("attention", "sdpa" if self.setting.cuda else "eager")
        padding = keys.pop("padding", False)
        if attention == "flash_attention_2" and not (self.setting.cuda and find_spec("flash_attn")):
            raise NotRun("flash-attn is not installed, or there is no GPU")
        config = read_config(self.setting, "stage 1")
        if self.model is None:
            self.model = random_model(self.setting, config, llm_config(self.setting, LAYERS))
            self.start = [p.detach().clone() for p in self.model.llama_proj.parameters()]
        with torch.no_grad():
            for parameter, start in zip(self.model.llama_proj.parameters(), self.start, strict=True):
                parameter.copy_(start)
                parameter.grad = None
        self.model.llama_model.set_attn_implementation(attention)
        if not padding:
            leave_padding_out(self.model.llama_model)
        task = MadeBatches(config.run.batch_size_train, config.model.image_size, config.model.max_txt_len)
        with self._quick_compiler():
            rows = train(self.setting, config, task, self.model, way.replace(" ", "_"), self.steps, **keys)
        seconds = [config.run.batch_size_train / row["samples_per_second"] for row in rows]
        self.losses[way] = [row.get("loss", math.nan) for row in rows]
        step = statistics.median(seconds[min(WARM_UP, len(seconds) // 2) :])
        values = {"seconds_a_step": round(step, 4), "first_step_s": round(seconds[0], 2)}
        if self.setting.cuda:
            values["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(self.setting.device) / 2**30, 2)
        if "plain" not in self.losses:
            return values | {"wrong": "plain failed: nothing to compare with"}
        pairs = zip(self.losses[way], self.losses["plain"], strict=True)
        apart = max(abs(ours - plain) / plain for ours, plain in pairs)
        values["loss_difference"] = round(apart, 6)
        if not apart <= NEAR:  # NaN is wrong too
            return values | {"wrong": f"the losses differ by more than {NEAR} from plain"}
        self.seconds[way] = step
        return values | {"speed_by_plain": round(self.seconds["plain"] / step, 3)}

    def _quick_compiler(self):
        """On a CPU nothing is compiled but the graph: C++ would take minutes, and shows nothing of a GPU."""
        if self.setting.cuda:
            return nullcontext()
        quick = partialmethod(nn.Module.compile, backend="eager")
        return mock.patch.object(nn.Module, "compile", quick)

    def fastest(self) -> dict:
        if not self.seconds:
            raise NotRun("nothing was right")
        best = min(self.seconds, key=self.seconds.get)
        return {"way": best, "speed_by_plain": round(self.seconds["plain"] / self.seconds[best], 3)}
