"""Installed packages: the versions this project should run with, and the optional ones that a feature needs.

pyproject.toml has ranges and names an extra for each optional package; requirements.lock has the tested versions.
"""

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .errors import UserError
from .paths import PROJECT

LOCK = PROJECT / "requirements.lock"


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


def installed_version(name: str) -> str:
    """The version of a package; empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def wanted_versions() -> dict[str, Requirement]:
    """Each package that this project needs, and each optional one that is installed -> the tested version, or the range
    in pyproject.toml where requirements.lock has none. Raises PackageNotFoundError: this project is not installed."""
    lines = LOCK.read_text().splitlines() if LOCK.is_file() else []
    tested = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    wanted = {}
    for need in map(Requirement, requires("minigpt4") or []):
        optional = need.marker is not None and not need.marker.evaluate({"extra": ""})
        name = canonicalize_name(need.name)
        if name != "minigpt4" and (not optional or installed_version(name)):
            wanted[name] = tested.get(name, need)
    return wanted
