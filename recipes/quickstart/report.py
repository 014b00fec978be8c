"""The quickstart's report: one HTML page that loads nothing, made from results.json alone."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from minigpt4.common.paths import write_whole
from minigpt4.evaluation.page import STYLE, cell, shown_pictures, thumbnail

from .scores import STAGES, confusions

SHOWN = 8  # pictures
KEPT = 170  # characters of an answer before stage 2 that are shown
NAMES = {"warm_start": "Warm start", "stage1": "Stage 1", "stage2": "Stage 2"}
STORY = {
    "warm_start": "No layer of the language model runs. Each projected query is moved toward the embeddings of the "
    "caption’s words. This step is not in the paper; it replaces most of stage 1’s steps.",
    "stage1": "Through the frozen language model, on short captions, as in the paper. The model now knows what it "
    "sees, but has never seen a conversation.",
    "stage2": "On detailed descriptions in the conversation template, as in the paper. It answers in whole sentences.",
}
ABOUT = {
    "What this is": "MiniGPT-4’s own path with small frozen models: EfficientNet-Lite0 sees, a small Q-Former "
    "reads, SmolLM2-135M speaks. Only the projection between them was trained here, {trained:,} weights.",
    "Held out by combination": "Every object and every scene occurs in training, but never in the combination shown "
    "here: this object on this scene, or these two together. So a right name was read off the picture.",
    "What this is not": "A measure of MiniGPT-4 at full size. The pictures are drawings, not photographs. Words are "
    "compared; what is said about colours, sizes and places is not scored.",
}
CREDIT = "Objects drawn by OpenMoji (openmoji.org), licence CC BY-SA 4.0; the pictures made of them are under the same."
PARTS = {  # step -> its name, what it counts, and which of results["samples"] it counts
    "weights": ("Weights", "", ()),
    "data": ("Pictures drawn", "pictures", ("stage1", "stage2", "heldout")),
    "features": ("Vision encoder, once for all pictures", "pictures", ("stage1", "stage2")),
    "warm_start": ("Warm start", "", ()),
    "stage1": ("Stage 1", "", ()),
    "stage2": ("Stage 2", "", ()),
    "answers": ("Answers", "", ()),
}


def write(results: dict, out: Path) -> None:
    """Write `out/report.html`."""
    write_whole(out / "report.html", page(results))


def value(results: dict, stage: str, name: str) -> str:
    """A score as text, without its interval."""
    return results["measures"][name]["form"].format(results["scores"][stage][name]["value"])


def blind(results: dict) -> float:
    """The share of objects that stage 2's answers name when they are shuffled among the pictures."""
    return results["facts"]["stage2"]["objects_right_shuffled"] or 0.0


def headline(results: dict) -> str:
    right = results["scores"]["stage2"]["objects_right"]["value"]
    return f"The model names {right:.0%} of the objects in new pictures. Blind guessing gets {blind(results):.0%}"


def lead(results: dict) -> str:
    return (
        f"{results['pictures']} held-out pictures with {results['objects']} objects were shown after each step. After "
        f"stage 2, {value(results, 'stage2', 'scene_right')} of the scenes are named right "
        f"({value(results, 'warm_start', 'scene_right')} after the warm start), an answer names "
        f"{value(results, 'stage2', 'objects_wrong')} objects that are not there, and "
        f"{value(results, 'stage2', 'failed')} of the answers fail: they repeat, break off or are no text."
    )


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


def page(results: dict) -> str:
    """The page as text. Pictures are embedded; nothing is loaded from anywhere."""
    notes = "".join(
        f"<section><h3>{escape(head)}</h3><p>{escape(text.format(trained=results['trained']))}</p></section>"
        for head, text in ABOUT.items()
    )
    cards = "".join(card(image, items[0]) for image, items in shown_pictures(results, SHOWN).items())
    question = escape(next(iter(results["questions"].values())))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(headline(results))} · MiniGPT-4 quickstart</title><style>{STYLE}{MORE_STYLE}</style></head>
<body>
<header><p class="kicker">MiniGPT-4 quickstart</p><h1>{escape(headline(results))}</h1>
<p class="lead">{escape(lead(results))}</p></header>
<h2>What each step adds</h2>
<div class="steps">{"".join(step(results, stage) for stage in STAGES)}</div>
<div class="panel wide">{measures(results)}<p>Small figures: 95 % bootstrap intervals over pictures. Blind guessing: the
answers of stage 2, shuffled among the pictures.</p></div>
<h2>Eight pictures, and what was said</h2>
<p class="legend">Asked: “{question}” The first pictures of a random order that never changes, not the best.
Things in the answers: <mark class="right">there</mark> <mark class="wrong">not there</mark></p>
<div class="cards">{cards}</div>
<h2>Where it still fails, and what it took</h2>
<div class="two"><div class="panel">{mistakes(results)}</div><div class="panel">{times(results)}</div></div>
<div class="notes">{notes}</div>
<footer>{escape(results["checkpoints"]["stage2"])} is the projection. All answers are in results.json;
docs/evaluation.md defines every number. {CREDIT}</footer>
</body>
</html>
"""


def step(results: dict, stage: str) -> str:
    """A panel: how many objects are named right, the step's story, its loss."""
    right = results["scores"][stage]["objects_right"]["value"]
    return (
        f'<section class="panel"><h3>{NAMES[stage]}</h3><p class="big">{right:.0%} <small>of the objects</small></p>'
        f'<div class="bar"><i style="width:{right:.1%}"></i><b style="left:{blind(results):.1%}"></b></div>'
        f"<p>{STORY[stage]}</p>{curve(results['losses'].get(stage, []))}</section>"
    )


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


def measures(results: dict) -> str:
    """The table of the measures after each step."""
    heads = "".join(f"<th>{name}</th>" for name in ("", *NAMES.values(), "Blind guessing"))
    rows = ""
    for name, measure in results["measures"].items():
        if measure["label"].startswith("…") and not any(results["scores"][stage][name]["value"] for stage in STAGES):
            continue  # a kind of failure that never happened
        cells = (cell(results["scores"][stage][name], measure["form"]) for stage in STAGES)
        guess = f"{blind(results):.1%}" if name == "objects_right" else ""
        said = "".join(f"<td>{shown}<small>{interval}</small></td>" for shown, interval in cells)
        rows += f"<tr><th>{escape(measure['label'])}</th>{said}<td>{guess}</td></tr>"
    return f"<table><tr>{heads}</tr>{rows}</table>"


def card(image: str, item: dict) -> str:
    """A held-out picture, what is on it, and the three answers; the last one whole."""
    said = "".join(
        f'<h4 class="{"last" if stage == "stage2" else "first"}">{NAMES[stage]}'
        f"{''.join(f' <small>{escape(flag)}</small>' for flag in item[stage]['flags'])}</h4>"
        f'<p class="{stage}">{marked(item[stage], None if stage == "stage2" else KEPT)}</p>'
        for stage in reversed(STAGES)
    )
    seen = f'<div class="seen"><img src="{thumbnail(Path(image))}" alt=""><p>{escape(item["truth"])}</p></div>'
    return f'<article class="panel">{seen}<div class="said">{said}</div></article>'


def marked(verdict: dict, most: int | None) -> str:
    """An answer with its things marked, cut to `most` characters."""
    text, html, at = verdict["answer"], "", 0
    end_of_text = most or len(text)
    for start, end, kind in verdict["marks"]:
        if end <= end_of_text:
            html += f'{escape(text[at:start])}<mark class="{kind}">{escape(text[start:end])}</mark>'
            at = end
    rest = escape(text[at:end_of_text]) + ("…" if end_of_text < len(text) else "")
    return html + rest or "<i>nothing</i>"


def mistakes(results: dict) -> str:
    """The objects that are named worst, and what is named in their place."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{right} of {shown}</td><td>{escape(', '.join(others)) or 'nothing'}</td></tr>"
        for name, shown, right, others in confusions(results, 8)
    )
    head = "<tr><th>Object</th><th>named</th><th>said instead</th></tr>"
    return f"<h3>The worst objects</h3><table>{head}{rows}</table>" if rows else "<h3>Every object was named</h3>"


def times(results: dict) -> str:
    """The time of each part, and its speed."""
    spent = {part: seconds for part, seconds in results["seconds"].items() if part in PARTS}
    rows = "".join(
        f"<tr><th>{PARTS[part][0]}</th><td>{duration(seconds)}</td><td>{', '.join(speeds(results, part))}</td></tr>"
        for part, seconds in spent.items()
    )
    total = duration(sum(spent.values()))
    return f"<h3>Time</h3><table>{rows}<tr><th>Together</th><td>{total}</td><td></td></tr></table>"


def speeds(results: dict, part: str) -> Iterator[str]:
    seconds, (_, unit, counted) = max(results["seconds"][part], 1e-9), PARTS[part]
    if counted and results["samples"]:
        yield f"{sum(results['samples'][name] for name in counted) / seconds:.0f} {unit}/s"
    if part == "answers":
        yield f"{len(STAGES) * results['answers'] / seconds:.1f} answers/s"
    if rate := results["tokens_per_second"].get(part):
        yield f"{rate:,.0f} tokens/s"


MORE_STYLE = """
.steps { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin-bottom: 16px; }
.steps p { font-size: 15px; } .steps h3 { margin: 0; } p.big { font-size: 34px; font-weight: 600; margin: 0 0 6px; }
.big small { font-size: 15px; }
.bar { position: relative; height: 10px; border-radius: 5px; background: var(--line); margin: 0 0 14px; }
.bar i { display: block; height: 100%; border-radius: 5px; background: var(--two); }
.bar b { position: absolute; top: -3px; width: 2px; height: 16px; background: var(--one); }
svg { display: block; width: 100%; } svg text { font-size: 13px; fill: var(--soft); }
polyline, .axis { fill: none; } .axis { stroke: var(--line); }
.raw { stroke: var(--soft); stroke-width: 1; opacity: .45; } .mean { stroke: var(--two); stroke-width: 2.5; }
.wide { overflow-x: auto; } .two { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.two td:last-child { white-space: normal; } tr:first-child th { font-weight: 400; color: var(--soft); }
.two tr:first-child th:not(:only-child) { text-align: right; } .two tr:first-child th:first-child { text-align: left; }
.seen p { font-size: 13px; color: var(--soft); margin: 6px 0 0; }
.said p.warm_start, .said p.stage1 { font-size: 13px; color: var(--soft); margin-bottom: 8px; }
article, section, tr { break-inside: avoid; } h2 { break-after: avoid; }
@media (max-width: 860px) { .steps, .two { grid-template-columns: 1fr; } }
@media (max-width: 520px) { .wide small { display: none; } .wide :is(td, th) { padding-left: 6px; font-size: 13px; } }
@media print { body { background: #fff; padding: 0; } .panel { box-shadow: none; } * { print-color-adjust: exact; } }
"""
