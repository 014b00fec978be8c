"""Names in YAML -> classes and functions.

A registry is filled when a room's `__init__` imports its modules, explicitly and without star imports.
"""

from collections.abc import Callable
from typing import Any

from .errors import UserError, did_you_mean


class RegistryError(UserError, KeyError):
    """A name that is not registered; the message says which names are."""

    __str__ = Exception.__str__  # KeyError would print the repr


class Registry:
    """A dictionary with a name of its own and helpful misses."""

    def __init__(self, key: str):
        self.key = key  # the config key whose values are looked up here, e.g. "model.arch"
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable:
        """Decorator: put a class or function under `name`. Raises ValueError when the name is taken."""

        def add(entry):
            if name in self._entries:
                raise ValueError(f"{self.key} {name!r} is registered twice: {self._entries[name]} and {entry}")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> Any:
        """The entry called `name`. Raises RegistryError with a suggestion."""
        if name not in self._entries:
            like, known = did_you_mean(name, self._entries), ", ".join(self.names())
            raise RegistryError(f"{self.key} {name!r} is not registered{like}; known: {known}")
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)


MODELS = Registry("model.arch")
DATASETS = Registry("datasets")
PROCESSORS = Registry("processor name")
TASKS = Registry("run.task")
OPTIMIZERS = Registry("run.optimizer")
LR_SCHEDULES = Registry("run.lr_sched")
CONVERSATIONS = Registry("model.conv_template")
