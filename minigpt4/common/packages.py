"""Optional packages that a feature needs. pyproject.toml names an extra for each."""

from importlib.util import find_spec

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
