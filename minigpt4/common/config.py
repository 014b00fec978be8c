"""YAML -> one frozen, typed `Config`; every problem is reported at once, before a weight is read.

Later wins: schema defaults < minigpt4/configs/ < the file that the YAML names as `base`, if any < the YAML file <
`--options a.b=c`.
"""

import functools
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .config_checks import check_meaning
from .config_values import fill, is_section, kind_of, option_value
from .errors import ConfigError, DataError, did_you_mean
from .paths import PACKAGE, PROJECT, read_text, resolve_path
from .schema import Config, meaning

Mode = Literal["train", "chat", "show"]
# A text such as ### that YAML reads as a comment, so that the key would be null.
LOST_TEXT = re.compile(r"^\s*(end_sym|pad_token|prompt_template|sample_question|prompt):[ \t]+(#\S.*)$", re.M)


def load_config(path: str, options: Sequence[str] = (), *, mode: Mode = "train") -> Config:
    """Read, merge and check a config.

    Args:
        path: the YAML file.
        options: `a.b=c` overrides; a text as it stands, all else as YAML.
        mode: `train` needs data and a run; `chat` only the model; `show` checks no paths.
    Raises:
        ConfigError: its text lists every problem by key.
    """
    config, problems = read_config(path, options, mode=mode)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{config.path}: {count}\n" + "\n".join(f"  {p}" for p in problems))
    return config


def read_config(path: str, options: Sequence[str] = (), *, mode: Mode = "train") -> tuple[Config, list[str]]:
    """Like `load_config`, but returns the problems beside the config: a line `key: ...` for each. A key of a wrong
    type has its default; all others have what was written."""
    path = resolve_path(str(path))
    problems: list[str] = []
    user: dict = {}
    written: dict[str, str] = {}  # key -> the file that wrote it
    for name, data in [*_read_with_bases(path), ("--options", _read_options(options, problems))]:
        _remove_datasets(user, data, written)
        _merge(user, data, name, written)
    merged: dict = {}
    origin: dict[str, str] = {}
    for name, data in _default_layers(user):
        _merge(merged, data, name, origin)
    _merge(merged, user, "", origin)
    config = replace(fill(Config, merged, "", problems), path=path, origin=origin | written)
    wrong = [p.split(":")[0] for p in problems]  # these keys have their default now: enough is said of them
    import_user_modules(config.run.import_modules, Path(path).parent, problems)
    problems += [p for p in check_meaning(config, mode) if not any(_is_about(p, key) for key in wrong)]
    return config, problems


def _is_about(problem: str, key: str) -> bool:
    """Whether a problem is of `key`, or of a key of its section and says how the two go together."""
    section, _, name = key.rpartition(".")
    together = problem.startswith(f"{section}.") and re.search(rf"\b{re.escape(name)}\b", problem)
    return problem.startswith((f"{key}:", f"{key}.")) or bool(section and together)


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
        near = [file.stem for file in sorted(Path(path).parent.glob("*.yaml"))]
        raise ConfigError(f"{path}: no such config file{did_you_mean(Path(path).stem, near)}")
    try:
        text = read_text(path)
        data = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)
    except (YAMLError, OmegaConfBaseException, DataError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if lost := LOST_TEXT.search(text):
        raise ConfigError(f"{path}: {lost[1]}: YAML takes {lost[2]} for a comment; write it in quotes, or write null")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a {type(data).__name__}, not the sections model, datasets, run")
    return data


def _read_options(options: Sequence[str], problems: list[str]) -> dict:
    """`a.b=c` each -> nested sections."""
    data: dict = {}
    for option in options:
        dotted, sign, text = option.partition("=")
        if not (sign and dotted):
            problems.append(f"--options {option!r}: write it as section.key=value")
            continue
        try:
            value = option_value(kind_of(dotted), text)
        except (YAMLError, OmegaConfBaseException) as error:
            problems.append(f"--options {option!r}: {' '.join(str(error).split())}")
            continue
        for name in reversed(dotted.split(".")):
            value = {name: value}
        _merge(data, value, "", {})
    return data


def _default_layers(user: dict) -> Iterator[tuple[str, dict]]:
    """The files below minigpt4/configs that belong to the model and datasets named in `user`."""
    model, datasets = user.get("model"), user.get("datasets")
    arch = model.get("arch", "mini_gpt4") if isinstance(model, dict) else "mini_gpt4"
    files = _default_files()
    models = {name: data for name, data in files.items() if "model" in data}
    # A misspelt arch gets every file, so that its name is all that is reported of it.
    yield from {n: data for n, data in models.items() if data["model"]["arch"] == arch}.items() or models.items()
    for name, data in files.items():
        if used := {k: v for k, v in data.get("datasets", {}).items() if isinstance(datasets, dict) and k in datasets}:
            yield name, {"datasets": used}


@functools.cache
def _default_files() -> dict[str, dict]:
    """Each file below minigpt4/configs -> what it holds. Nobody changes these: `_merge` copies."""
    return {str(f.relative_to(PROJECT)): OmegaConf.to_container(OmegaConf.load(f))
            for f in sorted(PACKAGE.glob("configs/**/*.yaml"))}  # fmt: skip


def _remove_datasets(user: dict, data: dict, origin: dict[str, str]) -> None:
    """What `data` writes as null is not taken over from the files before it; `datasets` that is empty takes none."""
    before, now = user.get("datasets"), data.get("datasets", {"": ""})
    if not isinstance(before, dict) or not isinstance(now, dict | None):
        return
    for name in [name for name in before if not now or (name in now and now[name] is None)]:
        del before[name]
        (now or {}).pop(name, None)
        _forget(origin, f"datasets.{name}")


def _forget(origin: dict[str, str], section: str) -> None:
    for old in [key for key in origin if key == section or key.startswith(f"{section}.")]:
        del origin[old]


def _merge(into: dict, data: dict, name: str, origin: dict[str, str], prefix: str = "") -> None:
    for k, value in data.items():
        dotted = f"{prefix}{k}"
        if isinstance(value, dict) and isinstance(into.get(k, {}), dict):
            _merge(into.setdefault(k, {}), value, name, origin, f"{dotted}.")
        elif value is None and isinstance(into.get(k), dict) and is_section(kind_of(dotted)):
            continue  # `run:` with nothing below it means: the defaults
        else:
            into[k] = value
            _forget(origin, dotted)
            origin[dotted] = name


def import_user_modules(names: Sequence[str], config_folder: Path, problems: list[str]) -> None:
    """Import the user's own code, once in a process; what cannot be imported gets a line in `problems`.

    Args:
        names: modules (`my_package.my_model`), looked for from the working directory, the config's folder and the
            project's as well as among what is installed; or files (`my_model.py`), from the config's folder, else the
            working directory.
    """
    # At the end of the path: a file of the user's that is called like an installed module hides nothing.
    _make_importable(Path.cwd(), config_folder.resolve(), PROJECT)
    for name in names:
        try:
            if not name.endswith(".py"):
                importlib.import_module(name)
                continue
            beside = config_folder / name
            file = (beside if beside.is_file() else Path(resolve_path(name))).resolve()
            if not file.is_file():
                raise FileNotFoundError(
                    f"no such file{did_you_mean(file.name, [f.name for f in config_folder.glob('*.py')])}"
                )
            _make_importable(file.parent)
            if Path(importlib.import_module(file.stem).__file__ or "").resolve() != file:
                raise ImportError(f"another module called {file.stem!r} is loaded already; rename the file")
        except SyntaxError as error:
            problems.append(f"run.import_modules: {name!r}: {error.msg} ({error.filename}:{error.lineno})")
        except Exception as error:  # a user's module may raise anything
            not_theirs = ("<frozen", str(PACKAGE), sys.prefix, sys.base_prefix)
            frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(not_theirs)]
            where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
            problems.append(f"run.import_modules: {name!r} cannot be imported: {type(error).__name__}: {error}{where}")


def _make_importable(*folders: Path) -> None:
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]


def describe_config(config: Config) -> list[tuple[str, Any, str, str]]:
    """(key, value, where it came from, meaning) for every key, in the schema's order."""
    rows = []

    def walk(section: Any, prefix: str) -> None:
        for f in fields(section):
            value, dotted = getattr(section, f.name), f"{prefix}{f.name}"
            if is_dataclass(value):
                walk(value, f"{dotted}.")
            elif dotted == "datasets":
                for name, dataset in value.items():
                    walk(dataset, f"datasets.{name}.")
            elif f.metadata:
                written = (by for k, by in config.origin.items() if k == dotted or k.startswith(f"{dotted}."))
                rows.append((dotted, value, next(written, "default"), meaning(f.metadata)))

    walk(config, "")
    return rows
