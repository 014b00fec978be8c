"""Rows of training: the step against peers and the machine, its memory, padding, cached features, processes."""

import copy
import os
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minigpt4.common.logger import read_log
from minigpt4.common.packages import has_cpp_compiler
from minigpt4.common.schema import Config, RunConfig
from minigpt4.datasets.features import FeatureTable
from minigpt4.runners.runner import Runner

from . import sizes
from .sizes import SizeS
from .timer import Line, Setting, in_a_process, peak_memory, processes


def limits(setting: Setting) -> list[Line]:
    """What this machine can do at most: products of the shapes of size S, and moving memory."""
    model, lines = SizeS(setting), []
    for dtype, torch_dtype in sizes.DTYPES.items():
        pairs = sizes.products(model, 472, 208, torch_dtype)
        seconds = setting.alternate(sizes.product_ways(pairs))
        lines += [Line(f"{dtype} {name}", "GFLOP/s", rate) for name, rate in sizes.gflops(seconds, pairs).items()]
    ways, gigabytes = sizes.bandwidth_ways(setting.quick)
    return lines + [Line(name, "GB/s", gigabytes / best) for name, best in setting.alternate(ways).items()]


def stepper(model: SizeS, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function that does one training step: forward, backward, AdamW. It returns the loss."""
    optimizer = torch.optim.AdamW(model.llama_proj.parameters(), lr=0.0)  # the loss stays what it is

    def step() -> Tensor:
        with model.autocast():
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def step(setting: Setting, dtype: str) -> list[Line]:
    """The step of size S: ours as it is and compiled, transformers', a plain loop; and its share of the GEMM peak."""
    model, compiled = SizeS(setting, dtype), None
    blip2 = sizes.blip2_of(model)
    if has_cpp_compiler() and not setting.quick:  # a copy with the same tensors
        compiled = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        compiled.compile_layers()
    return [line for stage in sizes.STAGES for line in step_of(setting, stage, dtype, model, blip2, compiled)]


def step_of(setting: Setting, stage: str, dtype: str, model: SizeS, blip2, compiled: SizeS | None) -> list[Line]:
    """The lines of one stage. Raises ValueError when the losses differ."""
    batch = sizes.batch_of(model, stage, quick=setting.quick)
    theirs = sizes.blip2_batch(model, batch)
    ways = {
        "ours": stepper(model, lambda: model(batch)["loss"]),
        "transformers": stepper(model, lambda: blip2(**theirs).loss),
        "a plain loop": stepper(model, lambda: sizes.plain_loss(model, batch)),
    }
    if compiled:
        ways["ours, run.compile"] = stepper(model, lambda: compiled(batch)["loss"])
    losses = {name: way().item() for name, way in ways.items()}
    apart = max(abs(loss / losses["ours"] - 1) for loss in losses.values())
    if apart > (1e-4 if dtype == "fp32" else 2e-2):
        raise ValueError(f"the losses differ: {losses}")
    with FlopCounterMode(display=False) as counter:
        ways["ours"]()
    work = counter.get_total_flops() * 1e-9
    pairs = sizes.products(model, batch["input_ids"].numel(), len(batch["target_ids"]), sizes.DTYPES[dtype])
    best = setting.alternate(ways | sizes.product_ways(pairs), warm=True)
    peak = max(sizes.gflops(best, pairs).values())
    lines, note = [], f"losses agree within {apart:.0e}"
    for name in [name for name in ways if name.startswith("ours")]:
        what = f"{stage}, {dtype}{name.removeprefix('ours')}"
        for peer in ("transformers", "a plain loop"):
            step_line = Line(
                f"training step S, {what}", setting.unit, best[name], best[peer], peer, "ratio >= 1.7", note
            )
            lines.append(step_line)
        said = f"{work:.3g} GFLOP a step; peak {peak:.0f} GFLOP/s"
        share = 100 * work / best[name] / peak
        lines.append(Line(f"share of the GEMM peak, {what}", "%", share, target="ours >= 65", note=said))
    return lines


def memory(setting: Setting) -> list[Line]:
    """Peak memory of a process that does two steps."""
    lines = []
    for dtype in sizes.DTYPES:
        for stage in sizes.STAGES:
            ours, peer = (in_a_process(setting, memory_of, stage, dtype, theirs) for theirs in (False, True))
            what = f"peak memory of a step S, {stage}, {dtype}"
            lines.append(Line(what, "GiB", ours, peer, "transformers", "ratio >= 1.43", "the whole process"))
    return lines


def memory_of(setting: Setting, stage: str, dtype: str, theirs: bool) -> float:
    """In GiB."""
    model = SizeS(setting, dtype)
    batch = sizes.batch_of(model, stage, quick=setting.quick)
    if theirs:
        blip2, inputs = sizes.blip2_of(model), sizes.blip2_batch(model, batch)
        one = stepper(model, lambda: blip2(**inputs).loss)
    else:
        one = stepper(model, lambda: model(batch)["loss"])
    one(), one()
    return peak_memory()


def padding(setting: Setting) -> list[Line]:
    """Real lengths of stage 2: without padding, which is the default, against rows that keep it."""
    model = SizeS(setting)
    batch = sizes.batch_of(model, "stage 2", sizes.description_lengths(2 if setting.quick else 8))
    padded = {name: tensor for name, tensor in batch.items() if name != "real_positions"}
    best = setting.alternate({
        "ours": stepper(model, lambda: model(batch)["loss"]),
        "eager attention with padding": stepper(model, lambda: model(padded)["loss"]),
        "a plain loop": stepper(model, lambda: sizes.plain_loss(model, batch)),
    })  # fmt: skip
    rows, ours = len(batch["image"]), best.pop("ours")
    note = f"{1 - batch['tokens'] / batch['input_ids'].numel():.0%} of the {rows} rows is padding"
    what = "batches without padding, stage 2 lengths, fp32"
    unit = f"samples/{setting.unit}"
    return [Line(what, unit, rows / ours, rows / best[peer], peer, "ratio >= 1.5", note) for peer in best]


def features(setting: Setting) -> list[Line]:
    """A step that reads the ViT's features from a file, against one without any ViT."""
    model = SizeS(setting)
    pixels = sizes.batch_of(model, "stage 1", quick=setting.quick)
    rows, crops = len(pixels["image"]), 2
    tokens = (model.config.image_size // 16) ** 2 + 1
    with tempfile.TemporaryDirectory() as folder:
        file, pairs = Path(folder, "features.npy"), [(Path(f"{i}.jpg"), "") for i in range(256)]
        values = np.random.default_rng(0).normal(size=(len(pairs), crops, tokens, model.visual_encoder.num_features))
        np.save(file, values.astype(np.float16))
        table, draw = FeatureTable(pairs, file, {}), torch.Generator().manual_seed(0)

        def read() -> Tensor:
            chosen = torch.randint(len(pairs), (rows,), generator=draw).tolist()
            return torch.stack([table(pairs[i][0]) for i in chosen])

        held = read()
        best = setting.alternate({
            "read": stepper(model, lambda: model(pixels | {"image": read()})["loss"]),
            "held": stepper(model, lambda: model(pixels | {"image": held})["loss"]),
            "pixels": stepper(model, lambda: model(pixels)["loss"]),
        })  # fmt: skip
    what = "training step S, stage 1, cached vision features"
    return [
        Line(what, setting.unit, best["read"], best["held"], "no vision tower", "ratio >= 0.9"),
        Line(what, setting.unit, best["read"], best["pixels"], "with the vision tower"),
    ]


class MadeBatches:
    """A task of one batch, again and again."""

    def __init__(self, batch: dict):
        self.batch = batch

    def build_loader(self, rank: int, world_size: int, seed: int, drawn: int = 0) -> "MadeBatches":
        return self

    def __iter__(self):
        while True:
            yield "made", {"text_input": [""] * len(self.batch["image"]), "bad": [], "hopeless": False}

    def state_dict(self) -> dict:
        return {}

    def build_batch(self, model: SizeS, samples: dict) -> dict:
        return dict(self.batch)

    def train_step(self, model: torch.nn.Module, batch: dict) -> Tensor:
        return model(batch)["loss"]


def run_of(setting: Setting, folder: str, rank: int, world: int, port: int) -> float:
    """Samples a second of a whole run of process `rank` of `world`, by the clock: the best step's."""
    if world > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
        os.environ |= dict(zip(names, map(str, (rank, rank, world, world, port, "127.0.0.1")), strict=True))
    torch.manual_seed(0)  # the same weights
    model, steps = SizeS(setting), 3 if setting.quick else 15
    batch = sizes.batch_of(model, "stage 1", quick=setting.quick)
    keys = dict(max_epoch=1, iters_per_epoch=steps, log_freq=1, amp=False, device="cpu", num_workers=0)
    run = RunConfig(output_dir=f"{folder}/{world}", batch_size_train=len(batch["image"]), **keys)
    config = Config(model=model.config, run=run)
    Runner(config, MadeBatches(batch), model, torch.device("cpu")).train()
    return max(row["samples_per_second"] for row in read_log(Path(folder, str(world), "log.jsonl"))[1:])


def two_processes(setting: Setting) -> list[Line]:
    """`train.py`'s loop in two processes against one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    rates = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder, processes(setting, world) as pool:
            runs = [pool.submit(run_of, setting, folder, rank, world, port) for rank in range(world)]
            rates[world] = max(run.result() for run in runs)
    what = "2 processes, one thread each, stage 1 of size S"
    return [Line(what, "samples/s", rates[2], rates[1], "1 process", "ratio >= 1.9", f"{os.cpu_count()} cores")]


step_fp32, step_bf16 = partial(step, dtype="fp32"), partial(step, dtype="bf16")
