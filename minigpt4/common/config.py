"""YAML -> one frozen, typed `Config`; every problem is reported at once, before a weight is read.

Later wins: schema defaults < minigpt4/configs/ < the file that the YAML names as `base`, if any < the YAML file <
`--options a.b=c`.
"""

import io
import os
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .config_checks import check_meaning, suggest
from .errors import ConfigError, DataError, did_you_mean
from .paths import PACKAGE, PROJECT, read_text, resolve_path
from .schema import Config
from .user_modules import import_user_modules

INVALID = object()  # what `_convert` gives for a value that has a line in `problems`


def load_config(path: str, options: Sequence[str] = (), *, mode: Literal["train", "chat", "show"] = "train") -> Config:
    """Read, merge and check a config.

    Args:
        path: the YAML file.
        options: `a.b=c` overrides, parsed as YAML.
        mode: `train` needs data and a run; `chat` only the model; `show` checks no paths.
    Raises:
        ConfigError: its text lists every problem by key.
    """
    config, problems = read_config(path, options, mode=mode)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{config.path}: {count}\n" + "\n".join(f"  {p}" for p in problems))
    return config


def read_config(
    path: str, options: Sequence[str] = (), *, mode: Literal["train", "chat", "show"] = "train"
) -> tuple[Config, list[str]]:
    """Like `load_config`, but what is wrong comes beside the config: a line `key: ...` for each problem. A key of a
    wrong type has its default; all others have what was written."""
    path = resolve_path(str(path))
    problems: list[str] = []
    layers = [*_read_with_bases(path), ("--options", _read_options(options, problems))]
    user: dict = {}
    for name, data in layers:
        _merge(user, data, name, {})
    layers = [*_default_layers(user), *layers]

    origin: dict[str, str] = {}
    merged: dict = {}
    for name, data in layers:
        _merge(merged, data, name, origin)
    config = replace(_fill(Config, merged, "", problems), path=path, origin=origin)
    wrong = tuple(p.split(":")[0] for p in problems)  # these keys have their default now: of them, enough is said
    import_user_modules(config.run.import_modules, Path(path).parent, problems)
    meaning: list[str] = []
    check_meaning(config, mode, meaning)
    problems += [p for p in meaning if not any(p.startswith((f"{key}:", f"{key}.")) for key in wrong)]
    return config, problems


def _read_with_bases(path: str, above: tuple[str, ...] = ()) -> list[tuple[str, dict]]:
    """The file's own keys, after those of the file that its key `base` names: a path from its folder."""
    data = _read_yaml(path)
    base = data.pop("base", None)
    if base is None:
        return [(path, data)]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} should be the path of a config file")
    above = (*above, os.path.normpath(path))
    file = os.path.normpath(Path(path).parent / base)
    if file in above:
        raise ConfigError(f"{path}: base: {base!r} leads back to this file")
    return [*_read_with_bases(file, above), (path, data)]


def _read_yaml(path: str) -> dict:
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path(path).parent.glob("*.yaml")) or sorted(
            map(str, Path().glob("*_configs/*.yaml"))
        )
        raise ConfigError(f"{path}: no such config file{did_you_mean(path, near)}")
    try:
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_text(path))), resolve=True)
    except (YAMLError, OmegaConfBaseException, DataError) as error:
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
    names = user["datasets"] if isinstance(user.get("datasets"), dict) else {}
    arch = user["model"].get("arch", "mini_gpt4") if isinstance(user.get("model"), dict) else "mini_gpt4"
    models = [(f, OmegaConf.to_container(OmegaConf.load(f))) for f in sorted(PACKAGE.glob("configs/models/*.yaml"))]
    # A misspelt arch gets every file, so that its name is all that is reported of it.
    used = [(f, data) for f, data in models if data["model"]["arch"] == arch] or models
    layers = [(str(f.relative_to(PROJECT)), data) for f, data in used]
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
    """Build dataclass `cls` from a dict. Unknown keys and wrong types get a line in `problems`, and the default."""
    if not isinstance(data, dict):
        if data is not None:  # `run:` with nothing below it means: the defaults
            problems.append(f"{prefix.rstrip('.')}: {data!r} should be a section with keys of its own")
        return cls()
    known = {f.name: f for f in fields(cls) if f.metadata}
    values = {}
    for k, value in data.items():
        if k in known:
            values[k] = _convert(known[k].type, value, f"{prefix}{k}", problems)
        else:
            problems.append(f"{prefix}{k}: unknown key{suggest(k, known)}")
    return cls(**{k: v for k, v in values.items() if v is not INVALID})


def _convert(kind: Any, value: Any, name: str, problems: list[str]) -> Any:
    """`value` as type `kind`, or INVALID and a line in `problems`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, name, problems)
    if is_dataclass(kind):
        return _fill(kind, value, f"{name}.", problems)
    if origin is dict:
        if value is None or isinstance(value, dict):
            return {str(k): _fill(args[1], v, f"{name}.{k}.", problems) for k, v in (value or {}).items()}
        problems.append(f"{name}: {value!r} should be a section with keys of its own")
        return INVALID
    if origin is Literal:
        if value in args:
            return value
        problems.append(f"{name}: {value!r} should be one of {', '.join(map(str, args))}")
        return INVALID
    if kind is float and type(value) is int:
        return float(value)
    if kind is Any or type(value) is kind:
        return value
    problems.append(f"{name}: {value!r} is {_a(type(value))}; it should be {_a(kind)}")
    return INVALID


def _a(kind: type) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", list: "a list",
             dict: "a section with keys of its own", type(None): "nothing (null)"}  # fmt: skip
    return words.get(kind, kind.__name__)


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
