"""What types cannot say of a config: names, ranges, paths, and keys that contradict each other.

Each check appends lines `key: what is wrong; what to write instead` to `problems`.
"""

import inspect
import re
from dataclasses import Field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .download import WEB, DownloadError, cached_path
from .errors import did_you_mean, some
from .paths import REMOTE, expand_shards, resolve_path
from .registry import CONVERSATIONS, DATASETS, LR_SCHEDULES, MODELS, PROCESSORS, TASKS
from .schema import BuildInfo, Config, DatasetConfig, ModelConfig, ProcessorConfig
from .training_form import training_form_problems

# What the small configs read is made by commands: folders, as the configs name them, and the command that fills each.
MADE_BY = {
    "weights/": "`minigpt4 weights` makes it",
    "data/sample_set/": "`minigpt4 sample-set` makes it",
    "data/tiny/": "`minigpt4 tiny --photos photos.jsonl` makes it",
    "my_photos/": "the head of train_configs/my_photos.yaml says what it holds",
    "output/": "the training run of that folder makes it",
}


def suggest(word: str, known) -> str:
    """`; did you mean 'x'?` when something looks like `word`, else the first of what is known."""
    return did_you_mean(word, known) or f"; known: {some(map(str, known), 8)}"


def check_meaning(config: Config, mode: str, problems: list[str]) -> None:
    """Every check that `mode` (see `load_config`) asks for."""
    _check_name(MODELS, config.model.arch, "model.arch", problems)
    _check_name(CONVERSATIONS, config.model.conv_template, "model.conv_template", problems, also=("auto",))
    for name, dataset in config.datasets.items():
        _check_processors(name, dataset, config.model.image_size, problems)
        for part, info in dataset.infos():
            if info.features and not info.features.endswith(".npy"):
                problems.append(f"datasets.{name}.{part}.features: {info.features!r} should end in .npy")
    _check_model(config.model, mode, problems)
    for key in ("lora", "low_resource"):
        if config.run.parallel == "fsdp" and getattr(config.model, key):
            problems.append(f"run.parallel: fsdp parts a frozen LLM of 16 or 32 bit; write ddp or no model.{key}")
    if mode == "train":
        _check_run(config, problems)
    if mode == "show":
        return
    _check_paths(config.model, "model", problems)
    if mode == "train":
        _check_paths(config.run, "run", problems)
        for name, dataset in config.datasets.items():
            where = f"datasets.{name}.builder" if dataset.builder else f"datasets.{name}"
            _check_name(DATASETS, dataset.builder or name, where, problems)
            if dataset.build_info.storage is None:
                problems.append(f"datasets.{name}.build_info.storage: not set; write where the dataset lies")
            _check_paths(dataset, f"datasets.{name}", problems)
            for part, info in dataset.infos():
                _check_paths(info, f"datasets.{name}.{part}", problems)


def _check_name(registry, name: str, where: str, problems: list[str], also: tuple[str, ...] = ()) -> None:
    """Only when something is registered: `minigpt4 config` of a bare install has nothing to compare with."""
    known = [*also, *registry.names()]
    if registry.names() and name not in known:
        problems.append(f"{where}: {name!r} is not registered{suggest(name, known)}")


def _check_processors(name: str, dataset: DatasetConfig, image_size: int, problems: list[str]) -> None:
    for kind in ("vis_processor", "text_processor"):
        for split in ("train", "eval"):
            processor: ProcessorConfig | None = getattr(getattr(dataset, kind), split)
            if processor is None:
                continue
            where = f"datasets.{name}.{kind}.{split}"
            _check_name(PROCESSORS, processor.name, f"{where}.name", problems)
            if processor.name not in PROCESSORS.names():
                continue
            takes = inspect.signature(PROCESSORS.get(processor.name)).parameters
            problems += [
                f"{where}.{k}: {processor.name} takes no such key; it takes {', '.join(takes)}"
                for k in processor.kwargs()
                if k not in takes
            ]
            if (processor.min_scale or 0) > (processor.max_scale or 1):
                problems.append(f"{where}.min_scale: {processor.min_scale} is above max_scale {processor.max_scale}; "
                                "write at most that")  # fmt: skip
            size = processor.image_size or (takes["image_size"].default if "image_size" in takes else image_size)
            if size != image_size:
                problems.append(f"{where}.image_size: {size}, but model.image_size is {image_size}; write the same")


def _check_model(model: ModelConfig, mode: str, problems: list[str]) -> None:
    q = model.qformer_kwargs
    if q.hidden_size % q.num_attention_heads:
        problems.append(
            f"model.qformer_kwargs.num_attention_heads: {q.num_attention_heads} does not divide "
            f"hidden_size {q.hidden_size}"
        )
    if model.device_map and mode == "train":
        problems.append(
            "model.device_map: auto is for chat; in training each process holds the whole LLM on its own device: "
            "leave it null"
        )
    if model.max_memory and not model.device_map:
        problems.append("model.max_memory: set, but model.device_map is not; write device_map: auto")
    if model.prompt_template is not None and "{}" not in model.prompt_template:
        problems.append(f"model.prompt_template: {model.prompt_template!r} has no {{}} where the instruction goes")
    if not model.has_qformer and not model.freeze_qformer:
        problems.append("model.freeze_qformer: False, but model.has_qformer is False; leave freeze_qformer out")
    if model.lora and not model.lora.target_modules:
        problems.append("model.lora.target_modules: should be a list of layer names, e.g. [q_proj, v_proj]")
    if mode == "show":
        return
    if mode == "chat" and model.ckpt is None:
        problems.append("model.ckpt: not set; chat needs a trained projection: write the path of a checkpoint_N.pth")
    if model.freeze_vit and model.vit_ckpt is None:
        problems.append(
            "model.vit_ckpt: not set, so a frozen ViT would have random weights; write the path of its weights"
        )
    if model.has_qformer and model.freeze_qformer and model.q_former_model is None:
        problems.append(
            "model.q_former_model: not set, so a frozen Q-Former would be random; write the path of its weights"
        )


def _check_run(config: Config, problems: list[str]) -> None:
    run = config.run
    _check_name(TASKS, run.task, "run.task", problems)
    _check_name(LR_SCHEDULES, run.lr_sched, "run.lr_sched", problems)
    if not any(dataset.sample_ratio for dataset in config.datasets.values()):
        problems.append("datasets: nothing to train on; name at least one dataset, with a sample_ratio above 0")
    elif run.early_stop and not any(dataset.valid_info for dataset in config.datasets.values()):
        problems.append("run.early_stop: set, but no dataset has valid_info; write datasets.<name>.valid_info")
    steps = run.max_epoch * run.iters_per_epoch
    if run.warmup_steps > steps:
        problems.append(
            f"run.warmup_steps: {run.warmup_steps:,} are more than the run's {steps:,} steps (max_epoch x "
            "iters_per_epoch); write fewer"
        )
    if run.lr_sched == "linear_warmup_cosine_lr" and run.min_lr > run.init_lr:
        problems.append(f"run.min_lr: {run.min_lr} is above init_lr {run.init_lr}, but it is where the rate falls to; "
                        f"write at most {run.init_lr}")  # fmt: skip
    if run.warmup_steps and run.warmup_lr > run.init_lr:
        problems.append(f"run.warmup_lr: {run.warmup_lr} is above init_lr {run.init_lr}, but the warm-up rises from "
                        f"it; write at most {run.init_lr}")  # fmt: skip
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device):
        problems.append(f"run.device: {run.device!r} should be auto, cpu, cuda or cuda:N")
    if run.evaluate:
        problems.append("run.evaluate: True, but train.py only trains; leave it False")
    problems += [
        f"run.sample_images: {image!r}: no such picture"
        for image in run.sample_images
        if not Path(resolve_path(image)).is_file()
    ]
    for tracker in run.report_to:
        if tracker not in ("wandb", "trackio"):
            problems.append(f"run.report_to: {tracker!r} should be wandb or trackio (TensorBoard needs no key)")
        elif find_spec(tracker) is None:
            problems.append(f"run.report_to: {tracker} is not installed; `pip install {tracker}`, or leave it out")
    if config.model.conv_template in CONVERSATIONS.names():
        template = CONVERSATIONS.get(config.model.conv_template)
        problems += [f"{key}: {'; '.join(said)}" for key, said in training_form_problems(config, template).items()]
    for name, dataset in config.datasets.items():
        if dataset.prompt_path and not config.model.prompt_path and config.model.end_sym is None:
            problems.append(
                f"model.end_sym: not set, but datasets.{name}.prompt_path asks for answers; write what ends one"
            )
        for part, info in dataset.infos():
            where = f"datasets.{name}.{part}"
            if info.features and not config.model.freeze_vit:
                problems.append(f"{where}.features: set, but model.freeze_vit is False; features of a ViT that is "
                                "trained would be old at once: leave them out")  # fmt: skip
            elif info.features and not Path(resolve_path(info.features)).is_file():
                problems.append(
                    f"{where}.features: {info.features!r}: no such file; `minigpt4 features --cfg-path {config.path}` "
                    "makes it (with the same --options, if there are any)"
                )


def _check_paths(section: Any, prefix: str, problems: list[str]) -> None:
    for f in fields(section):
        value = getattr(section, f.name)
        if not f.metadata.get("path") or value is None:
            continue
        where = f"{prefix}.{f.name}"
        values = value if isinstance(value, list) else [value]
        if not values or not all(values):
            problems.append(f"{where}: {value!r} should be a path, or null")
        elif any("/path/to" in v for v in values):
            problems.append(f"{where}: {value!r} is a placeholder; write a path: {f.metadata['doc']}")
        elif isinstance(section, BuildInfo) and f.name == "storage":
            _check_shards(values, where, problems)
        elif value.startswith(REMOTE):
            _check_url(value, f, where, problems)
        elif not Path(resolve_path(value)).exists():
            hint = _made_by(value) or (_hub_hint(value) if f.name == "llama_model" else "")
            problems.append(f"{where}: {value!r}: no such file or folder{hint}")


def _check_url(value: str, f: Field, where: str, problems: list[str]) -> None:
    if not f.metadata["url"]:
        problems.append(f"{where}: {value!r} is a URL; download it and write its path")
    elif not value.startswith(WEB):
        problems.append(f"{where}: {value!r}: only http:// and https:// are fetched; download it and write its path")
    elif f.name == "llama_model" and not urlsplit(value).path.endswith(".gguf"):
        problems.append(
            f"{where}: {value!r}: an LLM is a folder of files; of URLs only a .gguf file can be fetched. "
            "Download the folder (`hf download ORG/NAME --local-dir DIR`) and write its path"
        )
    else:
        try:
            cached_path(value)
        except DownloadError as error:
            problems.append(f"{where}: {error}")


def _hub_hint(value: str) -> str:
    """For the name of a model on the Hugging Face hub."""
    if not re.fullmatch(r"[\w-]+/[\w.-]+", value):
        return ""
    return f"; a model of the Hugging Face hub is fetched by `hf download {value} --local-dir {value}`"


def _made_by(path: str) -> str:
    return next((f"; {how}" for folder, how in MADE_BY.items() if path.startswith(folder)), "")


def _check_shards(patterns: list[str], where: str, problems: list[str]) -> None:
    shown = patterns[0] if len(patterns) == 1 else patterns
    try:
        shards = expand_shards(patterns)
    except ValueError as error:
        problems.append(f"{where}: {shown!r} is not a pattern like {{00000..01255}}.tar: {error}")
        return
    missing = [s for s in shards if not s.startswith(REMOTE) and not Path(s).exists()]
    if not shards or (len(missing) == 1 and len(shards) == 1):
        problems.append(f"{where}: {shown!r}: no such file or folder{_made_by(patterns[0])}")
    elif missing:
        problems.append(
            f"{where}: {len(missing)} of {len(shards)} files are missing, the first {missing[0]}; "
            "to use those that are there, write a pattern with *"
        )
