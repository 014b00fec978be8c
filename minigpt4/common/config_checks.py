"""What types cannot say of a config: names, ranges, paths, and keys that contradict each other.

Each check yields lines `key: what is wrong; what to write instead`.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .download import WEB, DownloadError, cached_path
from .errors import some, suggest
from .paths import REMOTE, expand_shards, missing_shards, resolve_path
from .registry import CONVERSATIONS, DATASETS, LR_SCHEDULES, MODELS, OPTIMIZERS, PROCESSORS, TASKS
from .schema import BuildInfo, Config, DatasetConfig

# What the small configs read is made by commands: folders, as the configs name them, and the command that fills each.
MADE_BY = {
    "weights/": "`minigpt4 weights` makes it",
    "data/sample_set/": "`minigpt4 sample-set` makes it",
    "data/tiny/": "`minigpt4 tiny --photos photos.jsonl` makes it",
    "my_photos/": "the head of train_configs/my_photos.yaml says what it holds",
    "output/": "the training run of that folder makes it",
}


def check_meaning(config: Config, mode: str) -> Iterator[str]:
    """Every check that `mode` (see `load_config`) asks for."""
    yield from _check_name(MODELS, config.model.arch, "model.arch")
    yield from _check_name(CONVERSATIONS, config.model.conv_template, "model.conv_template", also=("auto",))
    for name, dataset in config.datasets.items():
        yield from _check_processors(name, dataset, config.model.image_size)
    yield from _check_model(config, mode)
    if mode == "train":
        yield from _check_run(config)
    infos = [(f"datasets.{name}.{part}", info) for name, d in config.datasets.items() for part, info in d.infos()]
    for where, info in infos:
        yield from _check_features(where, info.features, config, mode)
    if mode == "show":
        return
    yield from _check_paths(config.model, "model")
    if mode == "train":
        yield from _check_paths(config.run, "run")
        for name, dataset in config.datasets.items():
            where = f"datasets.{name}"
            yield from _check_name(DATASETS, dataset.builder or name, f"{where}.builder" if dataset.builder else where)
            if dataset.build_info.storage is None:
                yield f"{where}.build_info.storage: not set; write where the dataset lies"
            yield from _check_paths(dataset, where)
        for where, info in infos:
            yield from _check_paths(info, where)


def _check_name(registry, name: str, where: str, also: tuple[str, ...] = ()) -> Iterator[str]:
    """Only when something is registered: `minigpt4 config` of a bare install has nothing to compare with."""
    known = [*also, *registry.names()]
    if registry.names() and name not in known:
        yield f"{where}: {name!r} is not registered{suggest(name, known)}"


def _check_processors(dataset_name: str, dataset: DatasetConfig, image_size: int) -> Iterator[str]:
    for kind in ("vis_processor", "text_processor"):
        for split, processor in vars(getattr(dataset, kind)).items():
            where = f"datasets.{dataset_name}.{kind}.{split}"
            if processor is None:
                continue
            yield from _check_name(PROCESSORS, processor.name, f"{where}.name")
            if processor.name not in PROCESSORS.names():
                continue
            takes = inspect.signature(PROCESSORS.get(processor.name)).parameters
            for k in processor.kwargs():
                if k not in takes:
                    yield f"{where}.{k}: {processor.name} takes no such key; it takes {', '.join(takes)}"
            size = processor.image_size or (takes["image_size"].default if "image_size" in takes else image_size)
            if size != image_size:
                yield f"{where}.image_size: {size}, but model.image_size is {image_size}; write the same"


def _check_model(config: Config, mode: str) -> Iterator[str]:
    model = config.model
    q, template = model.qformer_kwargs, model.prompt_template
    used = mode != "show"
    checks = {
        f"qformer_kwargs.num_attention_heads: {q.num_attention_heads} does not divide hidden_size {q.hidden_size}":
            q.hidden_size % q.num_attention_heads,
        "device_map: auto is for chat; in training each process holds the whole LLM on its own device: leave it null":
            model.device_map and mode == "train",
        "max_memory: set, but model.device_map is not; write device_map: auto":
            model.max_memory and not model.device_map,
        f"prompt_template: {template!r} has no {{}} where the instruction goes":
            template is not None and "{}" not in template,
        "freeze_qformer: False, but model.has_qformer is False; leave freeze_qformer out":
            not model.has_qformer and not model.freeze_qformer,
        "lora.target_modules: should be a list of layer names, e.g. [q_proj, v_proj]":
            model.lora and not model.lora.target_modules,
        "lora: set, but run.parallel: fsdp shards a frozen LLM of 16 or 32 bit; write ddp, or lora: null":
            model.lora and config.run.parallel == "fsdp",
        "low_resource: set, but run.parallel: fsdp shards a frozen LLM of 16 or 32 bit; write ddp, or False":
            model.low_resource and config.run.parallel == "fsdp",
        "ckpt: not set; chat needs a trained projection: write the path of a checkpoint_N.pth":
            mode == "chat" and model.ckpt is None,
        "vit_ckpt: not set, so a frozen ViT would have random weights; write the path of its weights":
            used and model.freeze_vit and model.vit_ckpt is None,
        "q_former_model: not set, so a frozen Q-Former would be random; write the path of its weights":
            used and model.has_qformer and model.freeze_qformer and model.q_former_model is None,
    }  # fmt: skip
    yield from (f"model.{text}" for text, wrong in checks.items() if wrong)


def _check_run(config: Config) -> Iterator[str]:
    run, model, datasets = config.run, config.model, config.datasets
    yield from _check_name(TASKS, run.task, "run.task")
    yield from _check_name(LR_SCHEDULES, run.lr_sched, "run.lr_sched")
    yield from _check_name(OPTIMIZERS, run.optimizer, "run.optimizer")
    steps = run.max_epoch * run.iters_per_epoch
    used = any(dataset.sample_ratio for dataset in datasets.values())
    checks = {
        "datasets: nothing to train on; name at least one dataset, with a sample_ratio above 0": not used,
        "run.early_stop: set, but no dataset has valid_info; write datasets.<name>.valid_info":
            used and run.early_stop and not any(dataset.valid_info for dataset in datasets.values()),
        f"run.warmup_steps: {run.warmup_steps:,} are more than the run's {steps:,} steps; write fewer":
            run.warmup_steps > steps,
        f"run.min_lr: {run.min_lr} is above init_lr {run.init_lr}, but it is where the rate falls to; write less":
            run.lr_sched == "linear_warmup_cosine_lr" and run.min_lr > run.init_lr,
        f"run.warmup_lr: {run.warmup_lr} is above init_lr {run.init_lr}, but the warm-up rises from it; write less":
            run.warmup_steps and run.warmup_lr > run.init_lr,
        f"run.device: {run.device!r} should be auto, cpu, cuda or cuda:N":
            not re.fullmatch(r"auto|cpu|cuda(:\d+)?", run.device),
        "run.evaluate: True, but train.py only trains; leave it False": run.evaluate,
    }  # fmt: skip
    yield from (text for text, wrong in checks.items() if wrong)
    pictures = [image for image in run.sample_images if not Path(resolve_path(image)).is_file()]
    yield from (f"run.sample_images: {image!r}: no such picture" for image in pictures)
    for tracker in run.report_to:
        if tracker not in ("wandb", "trackio"):
            yield f"run.report_to: {tracker!r} should be wandb or trackio (TensorBoard needs no key)"
        elif find_spec(tracker) is None:
            yield f"run.report_to: {tracker} is not installed; `pip install {tracker}`, or leave it out"
    if model.conv_template in CONVERSATIONS.names():
        yield from _check_training_form(config, CONVERSATIONS.get(model.conv_template))
    for name, dataset in datasets.items():
        if dataset.prompt_path and not model.prompt_path and model.end_sym is None:
            yield f"model.end_sym: not set, but datasets.{name}.prompt_path asks for answers; write what ends one"


def _check_training_form(config: Config, template) -> Iterator[str]:
    """Training should ask and end an answer as the chat does: else the model learns a form that nobody speaks with it.
    `template` is the Conversation of model.conv_template; a key that is null follows from it."""
    model = config.model
    asks = model.prompt_path or any(dataset.prompt_path for dataset in config.datasets.values())
    end, form, opens = model.end_sym, model.prompt_template, template.assistant.strip()
    if end is not None and (asks or end.strip()) and not any(stop in end for stop in template.stop):
        stops = some(map(repr, template.stop))
        text = f"{end!r} would end answers in training, but the chat ({template.name}) stops at {stops}"
        yield f"model.end_sym: {text}; write {template.end_sym!r}, or null"
    if asks and form and opens not in form:
        text = f"training asks {form!r}, but the chat ({template.name}) opens an answer with {opens!r}"
        yield f"model.prompt_template: {text}; write {template.prompt_template!r}, or null"


def _check_features(where: str, features: str | None, config: Config, mode: str) -> Iterator[str]:
    if features and not features.endswith(".npy"):
        yield f"{where}.features: {features!r} should end in .npy"
    elif features and mode == "train" and not config.model.freeze_vit:
        yield f"{where}.features: set, but model.freeze_vit is False, which makes them old at once; leave them out"
    elif features and mode == "train" and not Path(resolve_path(features)).is_file():
        how = f"`minigpt4 features --cfg-path {config.path}` makes it (with the same --options, if there are any)"
        yield f"{where}.features: {features!r}: no such file; {how}"


def _check_paths(section: Any, prefix: str) -> Iterator[str]:
    for f in fields(section):
        value = getattr(section, f.name)
        if not f.metadata.get("path") or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        text = ""
        if not values or not all(values):
            text = f"{value!r} should be a path, or null"
        elif any("/path/to" in v for v in values):
            text = f"{value!r} is a placeholder; write a path: {f.metadata['doc']}"
        elif isinstance(section, BuildInfo) and f.name == "storage":
            text = _of_shards(values)
        elif value.startswith(WEB) and f.metadata["url"]:
            if f.name == "llama_model" and not urlsplit(value).path.endswith(".gguf"):
                text = f"{value!r}: an LLM is a folder of files; of URLs only a .gguf file can be fetched"
            try:
                cached_path(value)
            except DownloadError as error:
                text = str(error)
        elif value.startswith(REMOTE):
            text = f"{value!r} is a URL that is not fetched here; download it and write its path"
        elif not Path(resolve_path(value)).exists():
            text = _of_missing(value, f.name == "llama_model")
        if text:
            yield f"{prefix}.{f.name}: {text}"


def _of_missing(value: str, is_llm: bool = False) -> str:
    """How a file or folder that is not there is made or fetched, where that is known."""
    hint = next((f"; {how}" for folder, how in MADE_BY.items() if value.startswith(folder)), "")
    if is_llm and not hint and re.fullmatch(r"[\w-]+/[\w.-]+", value):
        hint = f"; a model of the Hugging Face hub is fetched by `hf download {value} --local-dir {value}`"
    return f"{value!r}: no such file or folder{hint}"


def _of_shards(patterns: list[str]) -> str:
    try:
        shards = expand_shards(patterns)
    except ValueError as error:
        return f"{', '.join(patterns)!r} is not a pattern like {{00000..01255}}.tar: {error}"
    missing = missing_shards(shards)
    if not shards or len(missing) == len(shards) == 1:
        return _of_missing(", ".join(patterns))
    count = f"{len(missing)} of {len(shards)} files are missing, the first {', '.join(missing[:1])}"
    return f"{count}; to use those that are there, write a pattern with *" if missing else ""
