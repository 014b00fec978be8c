"""Does training ask and end an answer as the chat does? Else the model learns a form that nobody speaks with it."""

from pathlib import Path

from .errors import some
from .paths import resolve_path
from .schema import Config


def training_form_problems(config: Config, template) -> dict[str, tuple[str, str]]:
    """Key -> (what is wrong, what to write) of model.end_sym and model.prompt_template.

    Args:
        template: the Conversation of model.conv_template; a key that is null follows from it.
    """
    model, found = config.model, {}
    files = {model.prompt_path, *(dataset.prompt_path for dataset in config.datasets.values())} - {None}
    lines = [line for file in sorted(files) for line in _instructions(file)]
    end, form, opens = model.end_sym, model.prompt_template, template.assistant.strip()
    if end is not None and (lines or end.strip()) and not any(stop in end for stop in template.stop):
        text = f"{end!r} would end answers in training, but the chat ({template.name}) stops at "
        found["model.end_sym"] = text + some(map(repr, template.stop)), f"write {template.end_sym!r}, or null"
    asked = [form.replace("{}", line) for line in lines] if form else []
    if unlike := [ask for ask in asked if opens not in ask]:
        text = f"training asks {unlike[0]!r}, but the chat ({template.name}) opens an answer with {opens!r}"
        found["model.prompt_template"] = text, f"write {template.prompt_template!r}, or null"
    return found


def _instructions(path: str) -> list[str]:
    """Lines of a file of instructions; none of one that cannot be read, which is told elsewhere."""
    try:
        lines = Path(resolve_path(path)).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError):
        return []
    return [line.strip() for line in lines if "<ImageHere>" in line]  # training leaves the others out
