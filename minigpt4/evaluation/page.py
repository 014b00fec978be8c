"""The result of an evaluation for readers: a table of text, results.json, and a page in one HTML file."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from html import escape
from pathlib import Path

from PIL import Image

from ..common.paths import write_whole
from ..processors.image_processors import BrokenImage, decode_image

SHOWN = 24  # pictures on the page: the first of a random order that never changes, not the best
SIDE = 320  # pixels of their longer side
HEADS = {"before": "before", "after": "after"}


def write_json(results: dict, file: Path) -> None:
    write_whole(file, json.dumps(results, ensure_ascii=False, indent=1))


def columns(results: dict) -> dict[str, dict]:
    """heading -> scores, from left to right."""
    if "difference" not in results:
        return {"": results["scores"]["after"]}
    return {**{HEADS[stage]: results["scores"][stage] for stage in HEADS}, "difference": results["difference"]}


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


def html_page(results: dict, title: str) -> str:
    """The page as text; pictures are embedded, small."""
    heads = "".join(f"<th>{head}</th>" for head in ("", *columns(results))) if "difference" in results else ""
    body = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{v}<small>{i}</small></td>' for v, i in cells)}</tr>"
        for label, cells in rows(results)
    )
    pictures = _by_picture(results["items"])
    names = list(pictures)
    random.Random(8).shuffle(names)
    cards = "\n".join(_card(name, pictures[name]) for name in names[:SHOWN])
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
<title>{escape(title)} · MiniGPT-4 evaluation</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<header>
<p class="kicker">MiniGPT-4 evaluation</p>
<h1>{escape(title)}</h1>
<p class="lead">{escape(about(results))}</p>
</header>
<div class="pair tables">
<div class="panel"><table{"" if heads else ' class="alone"'}>{heads and f"<tr>{heads}</tr>"}{body}</table>
<p>Small figures: 95 % bootstrap intervals over pictures.</p></div>
<div class="panel side"><h3>Asked</h3>{questions}<h3>Weights</h3>{"".join(f"<p>{escape(c)}</p>" for c in checkpoints)}
<h3>To know</h3>{notes}</div>
</div>
<h2>{min(SHOWN, len(names))} of {len(names):,} picture{"s" * (len(names) != 1)}</h2>
<p class="legend">The first of a random order that never changes, not the best.{_legend(results)}</p>
<div class="cards">
{cards}
</div>
<footer>All answers are in results.json; docs/evaluation.md defines every number.</footer>
</body>
</html>
"""


def _by_picture(items: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for item in items:
        found.setdefault(item["image"], []).append(item)
    return found


def _legend(results: dict) -> str:
    if not any(item["after"]["marks"] for item in results["items"]):
        return ""
    return ' Things in the answers: <mark class="right">there</mark> <mark class="wrong">not there</mark>'


def _card(name: str, items: list[dict]) -> str:
    said = ""
    for i, item in enumerate(items):
        for stage in HEADS:
            if stage in item:
                head = " · ".join(filter(None, (item["variant"], stage if "before" in item else "")))
                flags = "".join(f" <small>{escape(flag)}</small>" for flag in item[stage]["flags"])
                kind = "stage1" if stage == "before" else "stage2"
                title = f'<h4 class="{kind}">{escape(head)}{flags}</h4>' if head or flags else ""
                said += f"{title}<p>{_marked(item[stage])}</p>"
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


STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5b6774; --line: #e3e6ea; --one: #c26a1b; --two: #0b7a75; }
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
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.tables { grid-template-columns: 1.9fr 1fr; }
.row { display: grid; grid-template-columns: 112px 1fr 72px; align-items: center; gap: 10px; margin: 8px 0; }
.row b { text-align: right; font-size: 21px; white-space: nowrap; }
.track { position: relative; height: 22px; background: #eef0f2; border-radius: 4px; }
.bar { height: 100%; border-radius: 4px; }
.whisker { position: absolute; top: 10px; height: 2px; background: var(--ink); opacity: .75; }
.stage1 .bar { background: var(--one); } .stage2 .bar { background: var(--two); }
.stage1 b, h4.stage1 { color: var(--one); } .stage2 b, h4.stage2 { color: var(--two); }
figure img { display: block; width: 100%; }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
article { display: grid; grid-template-columns: 190px 1fr; gap: 18px; }
article img { display: block; width: 100%; border-radius: 6px; }
.truth { font-size: 14px; color: var(--soft); margin: 8px 0 0; }
h4 { font-size: 14px; margin: 0 0 2px; }
h4 small { border: 1px solid var(--line); border-radius: 9px; padding: 0 7px; margin-left: 5px; font-size: 12px; }
.said p { font-size: 15px; line-height: 1.45; margin-bottom: 12px; white-space: pre-line; overflow-wrap: anywhere; }
mark { padding: 0 3px; border-radius: 3px; }
mark.right { background: #cdeed6; color: #0f4a24; }
mark.wrong { background: #fbd5d1; color: #7d1a12; text-decoration: underline dashed 1px; text-underline-offset: 3px; }
.legend { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th { text-align: left; font-weight: 500; } td { text-align: right; white-space: nowrap; }
tr:first-child th:not(:first-child) { text-align: right; color: var(--soft); font-weight: 400; }
th, td { padding: 6px 0 6px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { padding-left: 0; }
td small { display: block; font-size: 12px; }
table + p { font-size: 13px; color: var(--soft); margin: 12px 0 0; }
.total th, .total td { font-weight: 700; border-bottom: 0; }
.notes { display: grid; grid-template-columns: repeat(3, 1fr); gap: 26px; font-size: 15px; }
footer { margin-top: 34px; font-size: 13px; color: var(--soft); }
@media (max-width: 860px) { .pair, .tables, .cards, .notes { grid-template-columns: 1fr; } }
@media (max-width: 520px) { article { grid-template-columns: 1fr; } article img { max-width: 240px; } }
"""
MORE_STYLE = """
.side h3:not(:first-child) { margin-top: 16px; } .side { font-size: 14px; overflow-wrap: anywhere; }
.legend mark { margin-left: 6px; }
.alone td small { display: inline-block; min-width: 118px; } h4 small:first-child { margin-left: 0; }
.said p { max-height: 14em; overflow-y: auto; }
.said .truth { font-size: 13px; margin: -4px 0 14px; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e6eaee; --soft: #9aa6b2; --line: #2d3640; --one: #f0a35a; --two: #4cc4bd; }
  body { background: #12171c; } .panel { background: #1b2229; }
  mark.right { background: #17462a; color: #c9f2d6; } mark.wrong { background: #5a211c; color: #ffd9d4; }
}
"""
