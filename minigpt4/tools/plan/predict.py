"""What is counted, on a device: memory by purpose, time by term, whether it fits, and what would make it fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from ...common.gpus import CUDA_CONTEXT, IMAGES_PER_SECOND, PROCESS, Gpu, all_gather, all_reduce, roofline
from ...common.schema import Config
from .count import ChatCost, Part, Step, Workload, count_chat, count_layers, count_parts, count_step, workload

GIB = 2**30
MOST = 4096  # batches above this are not looked at
SLACK = "the allocator's unused blocks"


@dataclass(frozen=True)
class Setup:
    """A config, on which devices. `tokens` None: model.max_txt_len. `original`: with the original's code."""

    config: Config
    llm: PreTrainedConfig
    gpu: Gpu
    nproc: int = 1
    nodes: int = 1
    tokens: int | None = None
    original: bool = False

    @property
    def load(self) -> Workload:
        return workload(self.config, self.llm, self.gpu, self.tokens, self.original)

    @property
    def parts(self) -> tuple[Part, ...]:
        return count_parts(self.load)

    @property
    def devices(self) -> int:
        return self.nproc * self.nodes

    @property
    def parted(self) -> bool:
        """Whether the LLM's layers lie parted on the devices, in training."""
        return self.config.run.parallel == "fsdp" and self.devices > 1

    @property
    def training_weights(self) -> int:
        """Bytes of weights that a device holds between layers."""
        whole = sum(part.weights for part in self.parts)
        layers = count_layers(self.load)[0] if self.parted else 0
        return whole - layers + -(-layers // self.devices)

    def changed(self, batch: int | None = None, parallel: str | None = None, **model) -> "Setup":
        """With other keys of `model`, another run.parallel, or another batch and as many of them as make the same
        optimizer step."""
        run = replace(self.config.run, parallel=parallel or self.config.run.parallel)
        config = replace(self.config, model=replace(self.config.model, **model), run=run)
        if batch:
            whole = config.run.batch_size_train * config.run.accum_grad_iters
            run = replace(config.run, batch_size_train=batch, accum_grad_iters=-(-whole // batch))
            config = replace(config, run=run)
        return replace(self, config=config)


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by purpose."""

    lines: dict[str, int]
    gpu: Gpu

    @property
    def total(self) -> int:
        return sum(self.lines.values())

    @property
    def verdict(self) -> str:
        """fits, tight (the allocator has to give unused blocks back, which it does before it fails) or does not fit."""
        if self.total <= self.gpu.memory * GIB:
            return "fits"
        return "tight" if self.total - self.lines.get(SLACK, 0) <= self.gpu.memory * GIB else "does not fit"


def training_memory(setup: Setup) -> Memory:
    """Memory of a device at the peak of a training step."""
    trained = sum(part.trained for part in setup.parts)
    copies = 4 + 8 + (4 if setup.devices > 1 else 0)  # gradient, AdamW's two moments, DDP's bucket; fp32
    step = count_step(setup.load, setup.config.run.batch_size_train)
    lines = {
        "weights": setup.training_weights,
        # FSDP gathers the next layer while one computes
        **({"two layers, gathered": 2 * count_layers(setup.load)[1]} if setup.parted else {}),
        "gradients and AdamW": copies * trained,
        "kept for backward": step.kept,
        "workspace at the peak": step.peak - step.kept,
    }
    return _memory(setup, lines, step)


def chat_memory(setup: Setup) -> Memory:
    """Memory of a device at the peak of the longest chat."""
    chat = count_chat(setup.load)
    weights = sum(part.weights for part in setup.parts)
    lines = {"weights": weights, "keys and values": chat.cache, "workspace at the peak": chat.peak - chat.cache}
    return _memory(setup, lines, chat)


def _memory(setup: Setup, lines: dict[str, int], counted: Step | ChatCost) -> Memory:
    cuda = setup.gpu.kind == "cuda"
    lines = lines | ({SLACK: counted.reserved - counted.peak} if cuda else {})
    around = {"CUDA context" if cuda else "Python and libraries": int((CUDA_CONTEXT if cuda else PROCESS) * GIB)}
    return Memory(lines | around, setup.gpu)


@dataclass(frozen=True)
class Time:
    """Seconds of training. `compute`, `loading` and `gathering` are of one batch, the others of one optimizer step."""

    compute: float
    loading: float
    gathering: float  # the LLM's layers, where FSDP parts them
    all_reduce: float
    optimizer: float
    batches: int  # in an optimizer step
    steps: int

    @property
    def step(self) -> float:
        """Batches are loaded while the one before is computed, and layers gathered while the one before computes."""
        return self.batches * max(self.compute, self.loading, self.gathering) + self.all_reduce + self.optimizer

    @property
    def total(self) -> float:
        return self.steps * self.step


def training_time(setup: Setup) -> Time:
    run, gpu = setup.config.run, setup.gpu
    trained = sum(part.trained for part in setup.parts)
    step = count_step(setup.load, run.batch_size_train)
    gathered = 2 * count_layers(setup.load)[0] if setup.parted else 0  # in forward, and again in backward
    return Time(
        compute=roofline(step.work, gpu),
        # Features are read as they lie in their file.
        loading=0 if setup.load.features else run.batch_size_train / (IMAGES_PER_SECOND * max(run.num_workers, 1)),
        gathering=all_gather(gathered, gpu, setup.nproc, setup.nodes),
        all_reduce=all_reduce(4 * trained, gpu, setup.nproc, setup.nodes),
        optimizer=roofline({(0, 4, 28 * trained): 1}, gpu),  # reads 4 numbers for each weight, writes 3
        batches=run.accum_grad_iters,
        steps=run.max_epoch * run.iters_per_epoch,
    )


def weights_fit(setup: Setup) -> bool:
    """False when the weights alone are too much, so that no batch need be counted."""
    return setup.training_weights < setup.gpu.memory * GIB


def largest_batch(setup: Setup, candidates: Sequence[int] = range(MOST, 0, -1)) -> int:
    """The largest batch_size_train of the falling `candidates` that fits; 0 when none does.

    Memory grows nearly in a line with the batch: it shows where to look, and what is found there is counted.
    """

    def needs(batch: int) -> int:
        return training_memory(setup.changed(batch)).total

    room = setup.gpu.memory * GIB
    if not weights_fit(setup) or needs(1) > room:
        return 0
    high = max(setup.config.run.batch_size_train, 2)
    slope = (needs(high) - needs(1)) / (high - 1)
    likely = 1 + (room - needs(1)) / slope
    for batch in candidates:
        if batch <= likely:
            if needs(batch) <= room:
                return batch
            likely = 0.97 * batch
    return 1


def what_fits(setup: Setup) -> Iterator[tuple[dict, Setup]]:
    """Ways to train that fit, the least change first: the keys that change, and the whole. The batch divides
    an optimizer step's samples, and accum_grad_iters makes up for it, so that the training is the same."""
    now, run = {**vars(setup.config.model), "parallel": "fsdp" if setup.parted else None}, setup.config.run
    whole = run.batch_size_train * run.accum_grad_iters
    divisors = [b for b in range(run.batch_size_train, 0, -1) if whole % b == 0]
    slower, smaller, parted = {"use_grad_checkpoint": True}, {"low_resource": True}, {"parallel": "fsdp"}
    ways = [{}, slower] if setup.parted else [{}, slower, smaller, slower | smaller]
    if setup.devices > 1 and not (now["low_resource"] or now["lora"]):  # FSDP parts an LLM that is frozen, in 16 bit
        ways += [parted, slower | parted]
    for way in ways:
        if any(now[key] for key in way):
            continue  # so it is already
        changed = setup.changed(**way)
        if batch := largest_batch(changed, divisors):
            yield way, changed.changed(batch)


def chat_that_fits(setup: Setup) -> list[tuple[dict, Setup]]:
    """Ways to chat that fit, the finest weights first."""
    ways = [{"low_resource": low} for low in (False, True, "4bit") if low != setup.config.model.low_resource]
    return [(way, s) for way in ways if weights_fit(s := setup.changed(**way)) and chat_memory(s).verdict == "fits"]
