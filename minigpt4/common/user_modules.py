"""`run.import_modules`: code of the user's own, which registers datasets, models, optimizers and other parts."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .errors import did_you_mean
from .paths import PACKAGE, PROJECT, resolve_path


def import_user_modules(names: Sequence[str], config_folder: Path, problems: list[str]) -> None:
    """Import each, once in a process; what cannot be imported gets a line in `problems`.

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
