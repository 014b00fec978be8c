"""The result of an evaluation for readers: a table of text, results.json, and a page in one HTML file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from ..common.paths import write_whole
from ..processors.image_processors import BrokenImage, decode_image
from .answering import Item
from .judge import data_uri
from .scoring import Scored
from .statistics import compared

SHOWN = 24  # pictures on the page
SIDE = 320  # pixels of their longer side
INK, SOFT = "#1d2733", "#5b6774"  # colours of text and of secondary text, as in page.css
STYLE = Path(__file__).with_name("page.css")


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
    found = {title: results["scores"][stage] for stage, title in stages(results).items()}
    return {**found, "difference": results["difference"]} if "difference" in results else {"": found.popitem()[1]}


def rows(results: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """(label, [("0.312", "0.281 … 0.345") for each column]) of every measure; differences have a sign."""
    found = []
    for name, measure in results["measures"].items():
        cells = []
        for head, scores in columns(results).items():
            form = measure["form"].replace("{:", "{:+") if head == "difference" else measure["form"]
            value, low, high = (form.format(scores[name][k]).replace("-", "−") for k in ("value", "low", "high"))
            cells.append((value, f"{low} … {high}"))
        found.append((measure["label"], cells))
    return found


def about(results: dict) -> str:
    """One line: what was asked of what."""
    data = " + ".join(Path(name).name for name in results["data"])
    split = f", {results['split']}" if results["split"] else ""
    decoding = ", ".join(f"{key} {value}" for key, value in results["decoding"].items())
    what = f"{Path(results['config']).name} on {data}{split}"
    return f"{what}: {results['pictures']:,} pictures, {results['answers']:,} answers, {decoding}"


def table(results: dict, title: str) -> str:
    """For the terminal; intervals are 95 %, by bootstrap over pictures."""
    body = rows(results)
    wide = max(len(value) for _, cells in body for value, _ in cells)
    grid = [[label, *(f"{value:>{wide}}  ({interval})" for value, interval in cells)] for label, cells in body]
    if "difference" in results:
        grid.insert(0, ["", *columns(results)])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in grid]
    end = [*results["notes"], "In brackets: 95 % bootstrap intervals over pictures."]
    return "\n".join([f"{title}: {about(results)}", "", *lines, "", *end])


def document(title: str, kind: str, lead: str, body: str) -> str:
    """A page in one file, as text; `kind` is what made it: "evaluation", "quickstart"."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · MiniGPT-4 {kind}</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<p class="kicker">MiniGPT-4 {kind}</p>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
</header>
{body}
</body>
</html>
"""


def html_page(
    results: dict, title: str, kind: str = "evaluation", lead: str = "", figures: str = "", end: str = "",
    shown: int = SHOWN,
) -> str:  # fmt: skip
    """The page of some results.

    Args:
        lead: the text below the title (default: what was asked of what).
        figures, end: HTML above the table, and below the pictures.
        shown: how many pictures it shows.
    """
    heads = "".join(f"<th>{head}</th>" for head in ("", *columns(results))) if "difference" in results else ""
    body = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{v}<small>{i}</small></td>' for v, i in cells)}</tr>"
        for label, cells in rows(results)
    )
    asked = "".join(f"<p>{escape(v)}{': ' * bool(v)}“{escape(q)}”</p>" for v, q in results["questions"].items())
    weights, notes = (
        "".join(f"<p>{escape(text)}</p>" for text in texts if text)
        for texts in ((results["before"], results["checkpoint"]), results["notes"])
    )
    chosen, titles = shown_pictures(results, shown), stages(results)
    marked = any(item[stage]["marks"] for item in results["items"] for stage in titles)
    legend = ' Things in the answers: <mark class="right">there</mark> <mark class="wrong">not there</mark>'
    cards = "\n".join(_card(name, items, titles) for name, items in chosen.items())
    return document(title, kind, lead or about(results), f"""{figures}
<div class="tables">
<div class="panel"><table{"" if heads else ' class="alone"'}>{heads and f"<tr>{heads}</tr>"}{body}</table>
<p>Small figures: 95 % bootstrap intervals over pictures.</p></div>
<div class="panel side"><h3>Asked</h3>{asked}<h3>Weights</h3>{weights}<h3>To know</h3>{notes}</div>
</div>
<h2>{len(chosen)} of {results["pictures"]:,} pictures</h2>
<p class="legend">The first of a random order that never changes, not the best.{legend if marked else ""}</p>
<div class="cards">
{cards}
</div>
{end}
<footer>All answers are in results.json; docs/evaluation.md defines every number.</footer>""")  # fmt: skip


def shown_pictures(results: dict, count: int) -> dict[str, list[dict]]:
    """file -> its items, of the first `count` pictures of a random order that never changes."""
    found: dict[str, list[dict]] = {}
    for item in results["items"]:
        found.setdefault(item["image"], []).append(item)
    names = list(found)
    random.Random(8).shuffle(names)
    return {name: found[name] for name in names[:count]}


def _card(name: str, items: list[dict], titles: dict[str, str]) -> str:
    said = ""
    for i, item in enumerate(items):
        for stage, title in titles.items():
            head = " · ".join(filter(None, (item["variant"], title if len(titles) > 1 else "")))
            flags = "".join(f" <small>{escape(flag)}</small>" for flag in item[stage]["flags"])
            kind = "first" if len(titles) > 1 and stage == next(iter(titles)) else "last"
            heading = f'<h4 class="{kind}">{escape(head)}{flags}</h4>' if head or flags else ""
            said += f"{heading}<p>{_marked(item[stage])}</p>"
        shared = i + 1 < len(items) and items[i + 1]["truth"] == item["truth"]
        if item["truth"] and not shared:  # once, below the answers that share it
            said += f'<p class="truth">{escape(item["truth"])}</p>'
    return card(Path(name), said)


def _marked(verdict: dict) -> str:
    text, html, at = verdict["answer"], "", 0
    for start, end, kind in verdict["marks"]:
        html += f'{escape(text[at:start])}<mark class="{kind}">{escape(text[start:end])}</mark>'
        at = end
    return html + escape(text[at:]) or "<i>nothing</i>"


def card(image: Path, said: str) -> str:
    """A picture, with the HTML `said` beside it."""
    picture = f'<div class="seen"><img src="{thumbnail(image)}" alt=""></div>'
    return f'<article class="panel">{picture}<div class="said">{said}</div></article>'


def thumbnail(file: Path) -> str:
    """The picture, SIDE pixels at most, as a data: URI; an empty one where it cannot be read."""
    try:
        small = decode_image(file.read_bytes(), file.name)
    except (OSError, BrokenImage):
        return "data:,"
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_uri(small, quality=82)
