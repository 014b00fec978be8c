"""The quickstart's report: one HTML page that loads nothing, made of report.html from results.json alone."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from minigpt4.common.paths import write_whole
from minigpt4.evaluation.page import STYLE, cell, shown_pictures, thumbnail

from .scores import STAGES, confusions

SHOWN = 8  # pictures
KEPT = 170  # characters of an answer before stage 2 that are shown
NAMES = {"warm_start": "Warm start", "stage1": "Stage 1", "stage2": "Stage 2"}
PARTS = {  # step -> its name, and which of results["samples"] it is done for
    "weights": ("Weights", ()),
    "data": ("Pictures drawn", ("stage1", "stage2", "heldout")),
    "features": ("Vision encoder, once for all pictures", ("stage1", "stage2")),
    "warm_start": ("Warm start", ()),
    "stage1": ("Stage 1", ()),
    "stage2": ("Stage 2", ()),
    "answers": ("Answers", ()),
}


def write(results: dict, out: Path) -> None:
    """Write `out/report.html`. Pictures are embedded; nothing is loaded from anywhere."""
    here = Path(__file__).parent
    templates = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = templates.get_template("report.html").render(
        results=results, headline=headline(results), blind=blind(results), names=NAMES, parts=PARTS, kept=KEPT,
        pictures=shown_pictures(results, SHOWN), worst=confusions(results, 8), value=value, cell=cell, curve=curve,
        marked=marked, duration=duration, speeds=speeds, thumbnail=thumbnail,
        style=STYLE + (here / "report.css").read_text(encoding="utf-8"),
    )  # fmt: skip
    write_whole(out / "report.html", page)


def value(results: dict, stage: str, name: str) -> str:
    """A score as text, without its interval."""
    return results["measures"][name]["form"].format(results["scores"][stage][name]["value"])


def blind(results: dict) -> float:
    """The share of objects that stage 2's answers name when they are shuffled among the pictures."""
    return results["facts"]["stage2"]["objects_right_shuffled"] or 0.0


def headline(results: dict) -> str:
    right = results["scores"]["stage2"]["objects_right"]["value"]
    return f"The model names {right:.0%} of the objects in new pictures. Blind guessing gets {blind(results):.0%}"


def summary(results: dict) -> str:
    """For the terminal."""
    shown = {n: m["label"] for n, m in results["measures"].items() if n in (
        "objects_right", "objects_wrong", "scene_right", "failed")}  # fmt: skip
    rows = [["", *NAMES.values()]]
    rows += [[label, *(value(results, stage, name) for stage in STAGES)] for name, label in shown.items()]
    return headline(results) + ".\n\n" + "\n".join(f"{a:34}{b:>12}{c:>12}{d:>12}" for a, b, c, d in rows)


def duration(seconds: float) -> str:
    """75.3 -> "1 min 15 s" """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def curve(losses: list[float]) -> str:
    """A loss curve as SVG: each step thin, a moving mean bold; the numbers at both ends."""
    if len(losses) < 2:
        return ""
    smooth, mean = [], losses[0]
    for loss in losses:
        mean += (loss - mean) / min(12, len(losses) / 4 + 1)
        smooth.append(mean)
    low, high = min(losses), max(losses)

    def line(values: list[float], kind: str) -> str:
        xs = (8 + 304 * i / (len(values) - 1) for i in range(len(values)))
        ys = (130 - 110 * (v - low) / max(high - low, 1e-9) for v in values)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    return (
        f'<svg viewBox="0 0 320 152" role="img" aria-label="loss from {smooth[0]:.2f} to {smooth[-1]:.2f}">'
        f'<path class="axis" d="M8 14V132H312"/>{line(losses, "raw")}{line(smooth, "mean")}'
        f'<text x="14" y="13">loss {smooth[0]:.2f}</text>'
        f'<text x="312" y="13" text-anchor="end">→ {smooth[-1]:.2f}</text>'
        f'<text x="312" y="148" text-anchor="end">{len(losses)} steps</text></svg>'
    )


def marked(verdict: dict, most: int | None) -> str:
    """An answer as HTML with its things marked, cut to `most` characters."""
    text, html, at = verdict["answer"], "", 0
    end_of_text = most or len(text)
    for start, end, kind in verdict["marks"]:
        if end <= end_of_text:
            html += f'{escape(text[at:start])}<mark class="{kind}">{escape(text[start:end])}</mark>'
            at = end
    html += escape(text[at:end_of_text]) + ("…" if end_of_text < len(text) else "")
    return html or "<i>nothing</i>"


def speeds(results: dict, part: str) -> Iterator[str]:
    seconds, (_, counted) = max(results["seconds"][part], 1e-9), PARTS[part]
    if counted and results["samples"]:
        yield f"{sum(results['samples'][name] for name in counted) / seconds:.0f} pictures/s"
    if part == "answers":
        yield f"{len(STAGES) * results['answers'] / seconds:.1f} answers/s"
    if rate := results["tokens_per_second"].get(part):
        yield f"{rate:,.0f} tokens/s"
