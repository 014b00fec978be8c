"""`run.import_modules`: code of the user's own, which registers models, datasets, processors, tasks and schedules."""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from .errors import file_like
from .paths import PACKAGE, PROJECT, resolve_path


def import_user_modules(names: Sequence[str], config_folder: Path, problems: list[str]) -> None:
    """Import each, once in a process; what cannot be imported gets a line in `problems`.

    Args:
        names: modules (`my_package.my_model`), looked for from the working directory, the config's folder and the
            project's as well as among what is installed; or files (`my_model.py`), from the config's folder, else the
            working directory.
    """
    # At the end of the path: a file of the user's that is called like an installed module hides nothing.
    folders = map(str, (Path.cwd(), config_folder.resolve(), PROJECT))
    sys.path += [folder for folder in folders if folder not in sys.path]
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(name, config_folder)
            else:
                importlib.import_module(name)
        except Exception as error:  # a user's module may raise anything
            problems.append(f"run.import_modules: {name!r} cannot be imported: {_reason(error)}")


def _import_file(name: str, config_folder: Path) -> None:
    """The module is called by the file's stem and its folder is importable, so that loader processes find it too."""
    beside = config_folder / name
    file = (beside if beside.is_file() else Path(resolve_path(name))).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no such file{file_like(file.name, [f.name for f in config_folder.glob('*.py')])}")
    if loaded := sys.modules.get(file.stem):
        if Path(getattr(loaded, "__file__", None) or "").resolve() == file:
            return
        raise ImportError(f"another module called {file.stem!r} is loaded already; rename the file")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise


def _reason(error: Exception) -> str:
    """What was raised, and the last line of the user's code that led to it."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}:{error.lineno})"
    not_theirs = ("<frozen", str(PACKAGE), *(sysconfig.get_path(p) for p in ("stdlib", "purelib", "platlib")))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(not_theirs)]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
