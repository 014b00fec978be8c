"""The quickstart's report: the page of `minigpt4 eval` with the loss of both stages, and the same as one picture."""

import base64
import textwrap
import warnings
from html import escape
from pathlib import Path

from PIL import Image

from minigpt4.common.logger import pyplot
from minigpt4.common.paths import write_whole
from minigpt4.evaluation.page import INK, SOFT, html_page, shown_pictures, table

from .scores import STAGES

SHOWN = 8  # pictures
TITLES = {"stage1": "Stage 1: short captions", "stage2": "Stage 2: detailed descriptions"}
ABOUT = {
    "What this is": "MiniGPT-4’s own path, run with small frozen models: EfficientNet-Lite0 sees, a small Q-Former "
    "reads, SmolLM2-135M speaks. Only the projection between them was trained here, {trained:,} weights: stage 1 on "
    "short captions, stage 2 on detailed descriptions in the conversation template.",
    "Held out by combination": "Every object and every scene occurs in training, but never in the combination shown "
    "here: this object on this scene, or these two together. So a right name was read off the picture.",
    "What this is not": "A measure of MiniGPT-4 at full size. The pictures are drawings, not photographs, and a "
    "language model of 135 million weights says a lot that is not there. Words are compared; what is said about "
    "colours, sizes and places is not scored.",
}
CREDIT = "Objects drawn by OpenMoji (openmoji.org), licence CC BY-SA 4.0; the pictures made of them are under the same."


def write(results: dict, out: Path) -> None:
    """Write `out/report.html` and `out/report.png`; each stage's loss is the `loss.png` of its run."""
    losses = {stage: out / stage / "loss.png" for stage in STAGES}
    write_whole(out / "report.html", page(results, losses))
    draw(results, losses, out / "report.png")


def headline(results: dict) -> str:
    """One sentence with the first number of both stages; it says what happened, better or worse."""
    before, after = (results["scores"][stage]["objects_right"]["value"] for stage in STAGES)
    trend = "as after stage 1" if after == before else f"{'up' if after > before else 'down'} from {before:.0%}"
    return f"After stage 2 the model names {after:.0%} of the objects, {trend}"


def subtitle(results: dict) -> str:
    before, after = (results["scores"][stage]["failed"]["value"] for stage in STAGES)
    return (
        f"{after:.0%} of its answers fail: they repeat, break off or are no text; after stage 1, {before:.0%} did. "
        f"{results['pictures']} held-out pictures with {results['objects']} objects were shown."
    )


def duration(seconds: float) -> str:
    """75.3 -> "1 min 15 s" """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def time_taken(seconds: dict[str, float]) -> str:
    each = ", ".join(f"{step} {duration(taken)}" for step, taken in seconds.items() if step != "report")
    return f"Time: {each}."


def page(results: dict, losses: dict[str, Path]) -> str:
    """The page as text. Pictures are embedded; nothing is loaded from anywhere."""
    plots = "".join(
        f'<section class="panel"><h3>{TITLES[stage]}</h3>'
        f'<img src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" alt="loss"></section>'
        for stage, file in losses.items()
        if file.exists()
    )
    notes = "".join(
        f"<section><h3>{escape(head)}</h3><p>{escape(text.format(trained=results['trained']))}</p></section>"
        for head, text in ABOUT.items()
    )
    return html_page(
        results, headline(results), "quickstart", subtitle(results), figures=f'<div class="plots">{plots}</div>',
        end=f'<div class="notes">{notes}</div><footer>{time_taken(results["seconds"])} {CREDIT}</footer>', shown=SHOWN,
    )  # fmt: skip


def draw(results: dict, losses: dict[str, Path], file: Path) -> None:
    """The report as a PNG, for those without a browser: the numbers, the losses, pictures with their answers."""
    plt = pyplot()
    pictures = shown_pictures(results, SHOWN)
    rows = -(-len(pictures) // 2)
    heights = [3.9, 5.6, *[3.5] * rows]
    figure = plt.figure(figsize=(16, sum(heights)), dpi=100, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.25, h_pad=0.15)
    grid = figure.add_gridspec(2 + rows, 4, width_ratios=[1, 2, 1, 2], height_ratios=heights)

    def axis(row: int, columns: slice | int):
        found = figure.add_subplot(grid[row, columns])
        found.axis("off")
        return found

    top = axis(0, slice(None))
    write_text(top, 1, headline(results), fontsize=24, weight="bold")
    write_text(top, 0.84, table(results, "Quickstart"), fontsize=10, family="monospace")
    for i, (stage, plot) in enumerate(losses.items()):
        if plot.exists():
            shown = axis(1, slice(2 * i, 2 * i + 2))
            shown.set_title(TITLES[stage], loc="left", fontsize=14, color=INK)
            shown.imshow(Image.open(plot))
    for i, (image, items) in enumerate(pictures.items()):
        axis(2 + i // 2, 2 * (i % 2)).imshow(Image.open(image))
        said = axis(2 + i // 2, 2 * (i % 2) + 1)
        for y, (stage, title) in zip((1, 0.52), STAGES.items(), strict=True):
            verdict = items[0][stage]
            lines = textwrap.wrap(verdict["answer"] or "(nothing)", 58, max_lines=6, placeholder=" …")
            write_text(said, y, " · ".join([title, *verdict["flags"]]), fontsize=10, color=SOFT)
            write_text(said, y - 0.075, "\n".join(lines), fontsize=11)
        write_text(said, 0.07, items[0]["truth"], fontsize=10, color=SOFT)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # signs that the font lacks
        figure.savefig(file)
    plt.close(figure)


def write_text(axis, y: float, text: str, **style) -> None:
    """Text whose top left corner is at the left of the axis, `y` of its height up."""
    axis.text(0, y, text, va="top", parse_math=False, in_layout=False, transform=axis.transAxes,
              **{"color": INK, **style})  # fmt: skip
