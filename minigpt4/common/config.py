"""YAML -> one frozen, typed `Config`; every problem is reported at once, before a weight is read.

Later wins: schema defaults < minigpt4/configs/ < the YAML file < `--options a.b=c`.
"""

import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from braceexpand import braceexpand
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .errors import ConfigError, did_you_mean
from .registry import CONVERSATIONS, DATASETS, LR_SCHEDULES, MODELS, PROCESSORS, TASKS
from .schema import BuildInfo, Config, DatasetConfig, ModelConfig, ProcessorConfig

PACKAGE = Path(__file__).resolve().parents[1]
PROJECT = PACKAGE.parent  # the clone, when the package is installed with `pip install -e`
REMOTE = ("http://", "https://", "s3://", "gs://", "pipe:", "hdfs://")


def resolve_path(path: str) -> str:
    """A relative path is looked up from the working directory, then from the project's folder."""
    if path.startswith(REMOTE) or Path(path).expanduser().exists():
        return str(Path(path).expanduser()) if not path.startswith(REMOTE) else path
    return str(PROJECT / path) if (PROJECT / path).exists() else path


def expand_shards(storage: str | Sequence[str]) -> list[str]:
    """`/data/{00000..01255}.tar`, `/data/*.tar`, an URL pattern or a list of these -> shard names, in order."""
    patterns = [storage] if isinstance(storage, str) else list(storage)
    found = []
    for pattern in patterns:
        for name in braceexpand(pattern):
            local = not name.startswith(REMOTE)
            name = resolve_path(name) if local else name
            found += sorted(glob(name)) if local and any(c in name for c in "*?[") else [name]
    return found


def load_config(path: str, options: Sequence[str] = (), *, mode: Literal["train", "chat", "show"] = "train") -> Config:
    """Read, merge and check a config.

    Args:
        path: the YAML file.
        options: `a.b=c` overrides, parsed as YAML.
        mode: `train` needs data and a run; `chat` only the model; `show` checks no paths.
    Raises:
        ConfigError: its text lists every problem by key.
    """
    path = resolve_path(str(path))
    problems: list[str] = []
    layers = [(path, _read_yaml(path)), ("--options", _read_options(options, problems))]
    user = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(data) for _, data in layers)))
    layers = [*_default_layers(user), *layers]

    origin: dict[str, str] = {}
    merged: dict = {}
    for name, data in layers:
        _merge(merged, data, name, origin)
    config = _fill(Config, merged, "", problems)
    if config is not None:
        _check_meaning(config, mode, problems)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{path}: {count}\n" + "\n".join(f"  {p}" for p in problems))
    return _with(config, path=path, origin=origin)


def _with(config: Config, **changes) -> Config:
    return Config(**{**{f.name: getattr(config, f.name) for f in fields(config)}, **changes})


def _read_yaml(path: str) -> dict:
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path(path).parent.glob("*.yaml")) or sorted(
            map(str, Path().glob("*_configs/*.yaml"))
        )
        raise ConfigError(f"{path}: no such config file{did_you_mean(path, near)}")
    try:
        data = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__}, not the sections model, datasets, run")
    return data


def _read_options(options: Sequence[str], problems: list[str]) -> dict:
    good = [o for o in options if "=" in o and not o.startswith("=")]
    problems += [f"--options {o!r}: write it as section.key=value" for o in options if o not in good]
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(good))
    except (YAMLError, OmegaConfBaseException) as error:
        problems.append(f"--options {' '.join(good)}: {error}")
        return {}


def _default_layers(user: dict) -> list[tuple[str, dict]]:
    """The files below minigpt4/configs that belong to the model and datasets named in `user`."""
    layers = []
    names = user.get("datasets") if isinstance(user.get("datasets"), dict) else {}
    for file in sorted(PACKAGE.glob("configs/models/*.yaml")):
        data = OmegaConf.to_container(OmegaConf.load(file))
        model = user.get("model") if isinstance(user.get("model"), dict) else {}
        if data["model"]["arch"] == model.get("arch", "mini_gpt4"):
            layers.append((str(file.relative_to(PROJECT)), data))
    for file in sorted(PACKAGE.glob("configs/datasets/*/*.yaml")):
        data = OmegaConf.to_container(OmegaConf.load(file))
        used = {k: v for k, v in data["datasets"].items() if k in names}
        if used:
            layers.append((str(file.relative_to(PROJECT)), {"datasets": used}))
    return layers


def _merge(into: dict, data: Any, name: str, origin: dict[str, str], prefix: str = "") -> None:
    for k, value in data.items():
        dotted = f"{prefix}{k}"
        if isinstance(value, dict) and isinstance(into.get(k, {}), dict):
            into.setdefault(k, {})
            _merge(into[k], value, name, origin, f"{dotted}.")
        elif value is None and isinstance(into.get(k), dict):
            continue  # `laion:` with nothing below it means: the defaults
        else:
            into[k] = value
            origin[dotted] = name


def _fill(cls: type, data: Any, prefix: str, problems: list[str]) -> Any:
    """Build dataclass `cls` from a dict; note unknown keys and wrong types in `problems`."""
    if not isinstance(data, dict):
        problems.append(f"{prefix.rstrip('.')}: {data!r} should be a section with keys of its own")
        return None
    known = {f.name: f for f in fields(cls) if f.metadata}
    values, before = {}, len(problems)
    for k, value in data.items():
        if k not in known:
            problems.append(f"{prefix}{k}: unknown key{_suggest(k, known)}")
            continue
        values[k] = _convert(known[k].type, value, f"{prefix}{k}", problems)
    return cls(**values) if len(problems) == before else None


def _convert(kind: Any, value: Any, name: str, problems: list[str]) -> Any:
    """`value` as type `kind`, or a line in `problems`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, name, problems)
    if is_dataclass(kind):
        return _fill(kind, value, f"{name}.", problems)
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{name}: {value!r} should be a section with keys of its own")
            return None
        return {k: _fill(args[1], {} if v is None else v, f"{name}.{k}.", problems) for k, v in value.items()}
    if origin is Literal:
        if value not in args:
            problems.append(f"{name}: {value!r} should be one of {', '.join(map(str, args))}")
        return value
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (kind is str and isinstance(value, str)) or type(value) is kind:
        return value
    problems.append(f"{name}: {value!r} is {_a(type(value))}; it should be {_a(kind)}")
    return None


def _suggest(word: str, known) -> str:
    return did_you_mean(word, known) or f"; known: {', '.join(known)}"


def _a(kind: type) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", list: "a list",
             dict: "a section with keys of its own", type(None): "nothing (null)"}  # fmt: skip
    return words.get(kind, kind.__name__)


def _check_meaning(config: Config, mode: str, problems: list[str]) -> None:
    """What types cannot say: names, paths, and keys that contradict each other."""
    _check_name(MODELS, config.model.arch, "model.arch", problems)
    _check_name(CONVERSATIONS, config.model.conv_template, "model.conv_template", problems)
    for name, dataset in config.datasets.items():
        for kind in ("vis_processor", "text_processor"):
            for split in ("train", "eval"):
                processor: ProcessorConfig | None = getattr(getattr(dataset, kind), split)
                if processor is not None:
                    _check_name(PROCESSORS, processor.name, f"datasets.{name}.{kind}.{split}.name", problems)
    _check_model(config.model, mode, problems)
    if mode == "train":
        _check_run(config, problems)
    if mode == "show":
        return
    _check_paths(config.model, "model", problems)
    if mode == "train":
        _check_paths(config.run, "run", problems)
        for name, dataset in config.datasets.items():
            _check_name(
                DATASETS,
                dataset.builder or name,
                f"datasets.{name}{'.builder' if dataset.builder else ''}",
                problems,
            )
            if dataset.build_info.storage is None:
                problems.append(f"datasets.{name}.build_info.storage: not set; write where the dataset lies")
            _check_paths(dataset.build_info, f"datasets.{name}.build_info", problems)


def _check_name(registry, name: str, where: str, problems: list[str]) -> None:
    if registry.names() and name not in registry.names():
        problems.append(f"{where}: {name!r} is not registered{_suggest(name, registry.names())}")


def _check_model(model: ModelConfig, mode: str, problems: list[str]) -> None:
    q = model.qformer_kwargs
    if q.hidden_size % q.num_attention_heads:
        problems.append(
            f"model.qformer_kwargs.num_attention_heads: {q.num_attention_heads} does not divide "
            f"hidden_size {q.hidden_size}"
        )
    if "{}" not in model.prompt_template:
        problems.append(f"model.prompt_template: {model.prompt_template!r} has no {{}} where the instruction goes")
    if mode == "show":
        return
    if mode == "chat" and model.ckpt is None:
        problems.append("model.ckpt: not set; chat needs a trained projection: write the path of a checkpoint_N.pth")
    if model.freeze_vit and model.vit_ckpt is None:
        problems.append(
            "model.vit_ckpt: not set, so a frozen ViT would have random weights; write the path of its weights"
        )
    if model.freeze_qformer and model.q_former_model is None:
        problems.append(
            "model.q_former_model: not set, so a frozen Q-Former would be random; write the path of its weights"
        )


def _check_run(config: Config, problems: list[str]) -> None:
    run = config.run
    _check_name(TASKS, run.task, "run.task", problems)
    _check_name(LR_SCHEDULES, run.lr_sched, "run.lr_sched", problems)
    if not config.datasets:
        problems.append("datasets: nothing to train on; name at least one dataset")
    for name, low in (("batch_size_train", 1), ("iters_per_epoch", 1), ("max_epoch", 1), ("accum_grad_iters", 1),
                      ("num_workers", 0), ("log_freq", 1), ("warmup_steps", 0), ("keep_last", 1)):  # fmt: skip
        if getattr(run, name) < low:
            problems.append(f"run.{name}: {getattr(run, name)} should be at least {low}")
    if run.evaluate:
        problems.append("run.evaluate: True, but train.py only trains; leave it False")
    for name, dataset in config.datasets.items():
        if dataset.sample_ratio <= 0:
            problems.append(f"datasets.{name}.sample_ratio: {dataset.sample_ratio} should be above 0")
        for kind in ("vis_processor", "text_processor"):
            if getattr(dataset, kind).train is None:
                problems.append(f"datasets.{name}.{kind}.train: not set; write its name, e.g. "
                                + ("blip2_image_train" if kind == "vis_processor" else "blip_caption"))  # fmt: skip


def _check_paths(section: Any, prefix: str, problems: list[str]) -> None:
    for f in fields(section):
        value = getattr(section, f.name)
        if not f.metadata.get("path") or value is None:
            continue
        where = f"{prefix}.{f.name}"
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, str) for v in values):
            problems.append(f"{where}: {value!r} should be a path, or a list of paths")
        elif any("/path/to" in v for v in values):
            problems.append(f"{where}: {value!r} is a placeholder: set it to the path of: {f.metadata['doc']}")
        elif isinstance(section, BuildInfo) and f.name == "storage":
            shards = expand_shards(values)
            missing = [s for s in shards if not s.startswith(REMOTE) and not Path(s).exists()]
            if not shards or (len(missing) == 1 and len(shards) == 1):
                problems.append(f"{where}: {value!r}: no such file or folder")
            elif missing:
                problems.append(
                    f"{where}: {len(missing)} of {len(shards)} files are missing, the first {missing[0]}; "
                    "to use those that are there, write a pattern with *"
                )
        elif not value.startswith(REMOTE) and not Path(resolve_path(value)).exists():
            problems.append(f"{where}: {value!r}: no such file or folder")


def describe_config(config: Config) -> list[tuple[str, Any, str, str]]:
    """(key, value, where it came from, meaning) for every key, in the schema's order."""
    rows = []

    def walk(section: Any, prefix: str) -> None:
        for f in fields(section):
            value, dotted = getattr(section, f.name), f"{prefix}{f.name}"
            if not f.metadata:
                continue
            if is_dataclass(value):
                walk(value, f"{dotted}.")
            elif f.name == "datasets" and isinstance(value, dict):
                for name, dataset in value.items():
                    walk(dataset, f"datasets.{name}.")
            else:
                source = next(
                    (s for k, s in config.origin.items() if k == dotted or k.startswith(f"{dotted}.")),
                    "default",
                )
                rows.append((dotted, value, source, f.metadata["doc"]))

    walk(config, "")
    return rows


def default_of(f) -> Any:
    """The default of a dataclass field, for documentation."""
    return f.default_factory() if f.default_factory is not MISSING else f.default


__all__ = [
    "BuildInfo",
    "Config",
    "DatasetConfig",
    "ModelConfig",
    "describe_config",
    "expand_shards",
    "load_config",
    "resolve_path",
]
