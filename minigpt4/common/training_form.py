"""Does training ask and end an answer as the chat does? Else the model learns a form that nobody speaks with it."""

from pathlib import Path

from .errors import some
from .paths import resolve_path
from .registry import CONVERSATIONS
from .schema import Config


def training_form_problems(config: Config, template) -> dict[str, tuple[str, str]]:
    """Key -> (what is wrong, what to write) of model.end_sym and model.prompt_template.

    Args:
        template: the Conversation of model.conv_template; a key that is null follows from it.
    """
    model, found = config.model, {}
    asked = {"model.prompt_path": model.prompt_path}
    asked |= {f"datasets.{name}.prompt_path": dataset.prompt_path for name, dataset in config.datasets.items()}
    lines = [line for path in asked.values() if path for line in _instructions(path)]
    end, form, opens = model.end_sym, model.prompt_template, template.assistant.strip()
    if end is not None and (lines or end.strip()) and not any(stop in end for stop in template.stop):
        text = f"{end!r} would end answers in training, but the chat ({template.name}) stops at "
        found["model.end_sym"] = text + some(map(repr, template.stop)), f"write {template.end_sym!r}, or null"
    unlike = next((ask for line in lines if opens not in (ask := form.replace("{}", line))), None) if form else None
    if unlike is not None:
        like = [n for n in CONVERSATIONS.names() if CONVERSATIONS.get(n).assistant.strip() in unlike]
        found["model.prompt_template"] = (
            f"training asks {_cut(unlike)!r}, but the chat ({template.name}) opens an answer with {opens!r}",
            f"write {template.prompt_template!r}, or null" + (f"; or model.conv_template: {like[0]}" if like else ""),
        )
    return found


def _instructions(path: str) -> list[str]:
    """Lines of a file of instructions; none of one that cannot be read, which is told elsewhere."""
    try:
        lines = Path(resolve_path(path)).read_text("utf-8-sig").splitlines()
        return [line.strip() for line in lines if "<ImageHere>" in line]  # training leaves the others out
    except (OSError, ValueError):
        return []


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
