"""What a feature needs beside the packages that are always there. pyproject.toml names an extra for each package."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from .errors import UserError


class MissingPackage(UserError):
    """A feature needs an optional package that is not installed."""


def require_packages(feature: str, extra: str, *modules: str) -> None:
    """Raise MissingPackage, with the extra of pyproject.toml to install, unless all `modules` can be imported.
    `feature` is what needs them, e.g. `run.report_to: wandb`."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingPackage(
            f"{feature} needs {' and '.join(missing)}, not installed here; "
            f"run `pip install -e '.[{extra}]'` in the project's folder"
        )


def has_cpp_compiler() -> bool:
    """Whether torch.compile can build what it writes for a CPU: with a C++ compiler and the headers of Python."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return sys.platform == "linux" and shutil.which(os.environ.get("CXX", "g++")) is not None and headers.is_file()
