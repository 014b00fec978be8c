"""The result of an evaluation for readers: a table of text, results.json, and a page in one HTML file."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from ..common.paths import write_whole
from ..processors.image_processors import BrokenImage, decode_image
from .answering import Item
from .scoring import Scored
from .statistics import compared

SHOWN = 24  # pictures on the page: the first of a random order that never changes, not the best
SIDE = 320  # pixels of their longer side
INK, SOFT, LINE = "#1d2733", "#5b6774", "#e3e6ea"  # colours of text, of secondary text, of lines and borders


def results_of(items: Sequence[Item], scored: dict[str, Scored]) -> dict:
    """Scores, notes and answers as plain values, for results.json and the page; the caller adds what was run.

    Args:
        scored: stage -> scores of its answers to `items`. The last stage's notes are kept, and with two stages the
            difference of the second to the first is measured.
    """
    pictures, (*_, last) = [str(item.record.image) for item in items], scored.values()
    return {
        "pictures": len(set(pictures)),
        "answers": len(items),
        **compared({stage: s.measures for stage, s in scored.items()}, pictures),
        "notes": list(last.notes),
        "facts": {stage: s.facts for stage, s in scored.items()},
        "items": [
            {"id": item.record.id, "image": str(item.record.image), "variant": item.variant, "question": item.question,
             "truth": last.verdicts[i]["truth"],
             **{stage: {k: v for k, v in s.verdicts[i].items() if k != "truth"} for stage, s in scored.items()}}
            for i, item in enumerate(items)
        ],
    }  # fmt: skip


def write_json(results: dict, file: Path) -> None:
    write_whole(file, json.dumps(results, ensure_ascii=False, indent=1))


def stages(results: dict) -> dict[str, str]:
    """stage -> its heading, in order; `results["stages"]` may name others than before and after."""
    titles = results.get("stages", {"before": "before", "after": "after"})
    return {stage: title for stage, title in titles.items() if stage in results["scores"]}


def columns(results: dict) -> dict[str, dict]:
    """heading -> scores, from left to right."""
    titles = stages(results)
    if len(titles) == 1:
        (stage,) = titles
        return {"": results["scores"][stage]}
    return {**{title: results["scores"][stage] for stage, title in titles.items()}, "difference": results["difference"]}


def cell(score: dict, form: str, signed: bool = False) -> tuple[str, str]:
    """("0.312", "0.281 … 0.345"), with a sign for differences."""
    form = form.replace("{:", "{:+") if signed else form
    value, low, high = (form.format(score[k]).replace("-", "−") for k in ("value", "low", "high"))
    return value, f"{low} … {high}"


def rows(results: dict) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(label, [(value, interval) for each column]) of every measure."""
    for name, measure in results["measures"].items():
        cells = [cell(s[name], measure["form"], head == "difference") for head, s in columns(results).items()]
        yield measure["label"], cells


def about(results: dict) -> str:
    """One line: what was asked of what."""
    decoding = results["decoding"]
    how = (
        "sampled"
        if decoding["do_sample"]
        else f"{decoding['num_beams']} beams"
        if decoding["num_beams"] > 1
        else "greedy"
    )
    if decoding["repetition_penalty"] != 1:
        how += f", repetition penalty {decoding['repetition_penalty']}"
    split = f", {results['split']}" if results["split"] else ""
    count, answers = results["pictures"], results["answers"]
    return (
        f"{Path(results['config']).name} on {' + '.join(Path(d).name for d in results['data'])}{split}: "
        f"{count:,} picture{'s' * (count != 1)}, {answers:,} answer{'s' * (answers != 1)}, {how}, "
        f"at most {decoding['max_new_tokens']} tokens"
    )


def table(results: dict, title: str) -> str:
    """For the terminal; intervals are 95 %, by bootstrap over pictures."""
    cells = [row for _, row in rows(results)]
    values = max(len(value) for row in cells for value, _ in row)
    lines = [(label, [f"{value:>{values}}  ({interval})" for value, interval in row]) for label, row in rows(results)]
    heads = list(columns(results))
    label_width = max(len(label) for label, _ in lines)
    widths = [max(len(head), *(len(cells[i]) for _, cells in lines)) for i, head in enumerate(heads)]
    text = [f"{title}: {about(results)}", ""]
    if any(heads):
        text.append(" " * label_width + "".join(f"  {head:>{w}}" for head, w in zip(heads, widths, strict=True)))
    text += [
        f"{label:{label_width}}" + "".join(f"  {c:{w}}" for c, w in zip(cells, widths, strict=True))
        for label, cells in lines
    ]
    return "\n".join([*text, "", *results["notes"], "In brackets: 95 % bootstrap intervals over pictures."])


def html_page(
    results: dict, title: str, kind: str = "evaluation", lead: str = "", figures: str = "", end: str = "",
    shown: int = SHOWN,
) -> str:  # fmt: skip
    """The page as text; pictures are embedded, small.

    Args:
        kind: what made it: "evaluation", "quickstart".
        lead: the text below the title (default: what was asked of what).
        figures, end: HTML above the table, and below the pictures.
        shown: how many pictures it shows.
    """
    heads = "".join(f"<th>{head}</th>" for head in ("", *columns(results))) if "difference" in results else ""
    body = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{v}<small>{i}</small></td>' for v, i in cells)}</tr>"
        for label, cells in rows(results)
    )
    chosen, count = shown_pictures(results, shown), results["pictures"]
    cards = "\n".join(_card(name, items, stages(results)) for name, items in chosen.items())
    questions = "".join(
        f"<p>{escape(variant)}{': ' if variant else ''}“{escape(question)}”</p>"
        for variant, question in results["questions"].items()
    )
    checkpoints = [c for c in (results["before"], results["checkpoint"]) if c]
    notes = "".join(f"<p>{escape(note)}</p>" for note in results["notes"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · MiniGPT-4 {kind}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">MiniGPT-4 {kind}</p>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead or about(results))}</p>
</header>
{figures}
<div class="tables">
<div class="panel"><table{"" if heads else ' class="alone"'}>{heads and f"<tr>{heads}</tr>"}{body}</table>
<p>Small figures: 95 % bootstrap intervals over pictures.</p></div>
<div class="panel side"><h3>Asked</h3>{questions}<h3>Weights</h3>{"".join(f"<p>{escape(c)}</p>" for c in checkpoints)}
<h3>To know</h3>{notes}</div>
</div>
<h2>{len(chosen)} of {count:,} picture{"s" * (count != 1)}</h2>
<p class="legend">The first of a random order that never changes, not the best.{_legend(results)}</p>
<div class="cards">
{cards}
</div>
{end}
<footer>All answers are in results.json; docs/evaluation.md defines every number.</footer>
</body>
</html>
"""


def shown_pictures(results: dict, count: int) -> dict[str, list[dict]]:
    """file -> its items, of the first `count` pictures of a random order that never changes."""
    found: dict[str, list[dict]] = {}
    for item in results["items"]:
        found.setdefault(item["image"], []).append(item)
    names = list(found)
    random.Random(8).shuffle(names)
    return {name: found[name] for name in names[:count]}


def _legend(results: dict) -> str:
    *_, last = stages(results)
    if not any(item[last]["marks"] for item in results["items"]):
        return ""
    return ' Things in the answers: <mark class="right">there</mark> <mark class="wrong">not there</mark>'


def _card(name: str, items: list[dict], titles: dict[str, str]) -> str:
    said = ""
    for i, item in enumerate(items):
        for stage, title in titles.items():
            several = len(titles) > 1
            head = " · ".join(filter(None, (item["variant"], title if several else "")))
            flags = "".join(f" <small>{escape(flag)}</small>" for flag in item[stage]["flags"])
            kind = "first" if several and stage == next(iter(titles)) else "last"
            heading = f'<h4 class="{kind}">{escape(head)}{flags}</h4>' if head or flags else ""
            said += f"{heading}<p>{_marked(item[stage])}</p>"
        shared = i + 1 < len(items) and items[i + 1]["truth"] == item["truth"]
        if item["truth"] and not shared:  # once, below the answers that share it
            said += f'<p class="truth">{escape(item["truth"])}</p>'
    return (
        f'<article class="panel"><div class="seen"><img src="{thumbnail(Path(name))}" alt=""></div>'
        f'<div class="said">{said}</div></article>'
    )


def _marked(verdict: dict) -> str:
    text, html, at = verdict["answer"], "", 0
    for start, end, kind in verdict["marks"]:
        html += f'{escape(text[at:start])}<mark class="{kind}">{escape(text[start:end])}</mark>'
        at = end
    return html + escape(text[at:]) or "<i>nothing</i>"


def thumbnail(file: Path) -> str:
    """The picture, SIDE pixels at most, as a data: URI."""
    try:
        small = decode_image(file.read_bytes(), file.name)
    except (OSError, BrokenImage):
        return "data:,"  # it was counted where the model should have seen it
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


STYLE = (
    f":root {{ color-scheme: light; --ink: {INK}; --soft: {SOFT}; --line: {LINE}; --one: #c26a1b; --two: #0b7a75; }}"
)
STYLE += """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink); background: #f5f6f7;
  max-width: 1140px; margin: 0 auto; padding: 40px 24px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 4px 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 38px 0 12px; }
h3 { font-size: 16px; margin: 0 0 12px; }
p { margin: 0 0 8px; }
small { color: var(--soft); font-weight: 400; }
.kicker { color: var(--two); font-weight: 600; margin: 0; }
.lead { color: var(--soft); font-size: 17px; max-width: 880px; margin-bottom: 22px; }
.panel { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin: 0; }
.tables { display: grid; grid-template-columns: 1.9fr 1fr; gap: 16px; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin-bottom: 16px; }
.plots img { display: block; width: 100%; background: #fff; border-radius: 6px; }
.side { font-size: 14px; overflow-wrap: anywhere; }
.side h3:not(:first-child) { margin-top: 16px; }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
article { display: grid; grid-template-columns: 190px 1fr; gap: 18px; }
article img { display: block; width: 100%; border-radius: 6px; }
h4 { font-size: 14px; margin: 0 0 2px; }
h4.first { color: var(--one); } h4.last { color: var(--two); }
h4 small { border: 1px solid var(--line); border-radius: 9px; padding: 0 7px; margin-left: 5px; font-size: 12px; }
h4 small:first-child { margin-left: 0; }
.said p { font-size: 15px; line-height: 1.45; margin-bottom: 12px; white-space: pre-line; overflow-wrap: anywhere;
  max-height: 14.5em; overflow-y: auto; } /* ten lines */
.said .truth { font-size: 13px; color: var(--soft); margin: -4px 0 14px; }
mark { padding: 0 3px; border-radius: 3px; }
mark.right { background: #cdeed6; color: #0f4a24; }
mark.wrong { background: #fbd5d1; color: #7d1a12; text-decoration: underline dashed 1px; text-underline-offset: 3px; }
.legend { color: var(--soft); } .legend mark { margin-left: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { text-align: left; font-weight: 500; } td { text-align: right; white-space: nowrap; }
tr:first-child th:not(:first-child) { text-align: right; color: var(--soft); font-weight: 400; }
th, td { padding: 6px 0 6px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { padding-left: 0; }
td small { display: block; font-size: 12px; } .alone td small { display: inline-block; min-width: 118px; }
table + p { font-size: 13px; color: var(--soft); margin: 12px 0 0; }
.notes { display: grid; grid-template-columns: repeat(3, 1fr); gap: 26px; font-size: 15px; margin-top: 38px; }
footer { margin-top: 34px; font-size: 13px; color: var(--soft); }
@media (max-width: 860px) { .tables, .plots, .cards, .notes { grid-template-columns: 1fr; } }
@media (max-width: 520px) { article { grid-template-columns: 1fr; } article img { max-width: 240px; } }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e6eaee; --soft: #9aa6b2; --line: #2d3640; --one: #f0a35a; --two: #4cc4bd; }
  body { background: #12171c; } .panel { background: #1b2229; }
  mark.right { background: #17462a; color: #c9f2d6; } mark.wrong { background: #5a211c; color: #ffd9d4; }
}
"""
