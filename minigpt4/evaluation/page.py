"""The result of an evaluation for readers: a table of text, results.json, and a page in one HTML file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..common.paths import PACKAGE, write_whole
from ..processors.image_processors import BrokenImage, decode_image
from .answering import Item
from .judge import data_uri
from .scoring import Scored
from .statistics import summarize

SHOWN = 24  # pictures on the page
SIDE = 320  # pixels of their longer side
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def results_of(items: Sequence[Item], scored: dict[str, Scored]) -> dict:
    """Scores, notes and answers as plain values, for results.json and the page; the caller adds what was run.

    Args:
        scored: stage -> scores of its answers to `items`. The notes are the last stage's, and the difference is that of
            the last stage to the first.
    """
    pictures, (first, *_, last) = [str(item.record.image) for item in items], [*scored.values(), *scored.values()]
    found = {
        "pictures": len(set(pictures)),
        "answers": len(items),
        "measures": {m.name: {"label": m.label, "form": m.form, "better": m.better} for m in last.measures},
        "scores": {stage: summarize(s.measures, pictures) for stage, s in scored.items()},
        "notes": list(last.notes),
        "facts": {stage: s.facts for stage, s in scored.items()},
        "items": [
            {"id": item.record.id, "image": str(item.record.image), "variant": item.variant, "question": item.question,
             "truth": last.verdicts[i]["truth"],
             **{stage: {k: v for k, v in s.verdicts[i].items() if k != "truth"} for stage, s in scored.items()}}
            for i, item in enumerate(items)
        ],
    }  # fmt: skip
    if len(scored) > 1:
        before = {m.name: m for m in first.measures}
        found["difference"] = summarize(last.measures, pictures, [before[m.name] for m in last.measures])
    return found


def write_json(results: dict, file: Path) -> None:
    write_whole(file, json.dumps(results, ensure_ascii=False, indent=1))


def columns(results: dict) -> dict[str, dict]:
    """heading -> scores, from left to right: before, after and their difference; or after alone, without a heading."""
    scores = results["scores"]
    return scores | {"difference": results["difference"]} if "difference" in results else {"": scores["after"]}


def cell(score: dict, form: str, signed: bool = False) -> tuple[str, str]:
    """("0.312", "0.281 … 0.345"), with a sign for differences."""
    form = form.replace("{:", "{:+") if signed else form
    value, low, high = (form.format(score[k]).replace("-", "−") for k in ("value", "low", "high"))
    return value, f"{low} … {high}"


def rows(results: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """(label, the cells of each column) of every measure."""
    heads = columns(results).items()
    return [
        (m["label"], [cell(scores[name], m["form"], head == "difference") for head, scores in heads])
        for name, m in results["measures"].items()
    ]


def about(results: dict) -> str:
    """One line: what was asked of what."""
    data = " + ".join(Path(name).name for name in results["data"])
    split = f", {results['split']}" if results["split"] else ""
    decoding = ", ".join(f"{key} {value}" for key, value in results["decoding"].items())
    what = f"{Path(results['config']).name} on {data}{split}"
    return f"{what}: {results['pictures']:,} pictures, {results['answers']:,} answers, {decoding}"


def table(results: dict, title: str) -> str:
    """For the terminal; intervals are 95 %, by bootstrap over pictures."""
    grid = [["", *columns(results)]] if "difference" in results else []
    grid += [[label, *(f"{value:>6}  ({interval})" for value, interval in cells)] for label, cells in rows(results)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in grid]
    end = [*results["notes"], "In brackets: 95 % bootstrap intervals over pictures."]
    return "\n".join([f"{title}: {about(results)}", "", *lines, "", *end])


def html_page(results: dict, title: str) -> str:
    """The page of some results, with SHOWN of the pictures."""
    body = render(
        "evaluation/report.html", results=results, heads=list(columns(results)), rows=rows(results),
        pictures=shown_pictures(results, SHOWN),
        has_marks=any(item[stage]["marks"] for item in results["items"] for stage in results["scores"]),
    )  # fmt: skip
    return document(title, "evaluation", about(results), body)


def shown_pictures(results: dict, count: int) -> dict[str, list[dict]]:
    """file -> its items, of the first `count` pictures of a random order that never changes."""
    found: dict[str, list[dict]] = {}
    for item in results["items"]:
        found.setdefault(item["image"], []).append(item)
    names = list(found)
    random.Random(8).shuffle(names)
    return {name: found[name] for name in names[:count]}


def document(title: str, kind: str, lead: str, body: str) -> str:
    """A page in one file, around the HTML `body`; `kind` is what made it: "evaluation", "curation"."""
    return render("evaluation/page.html", title=title, kind=kind, lead=lead, body=body)


def render(template: str, **values) -> str:
    """A template of this package, filled in. Texts are escaped; templates may use `style` and `thumbnail(file)`."""
    loader = FileSystemLoader(PACKAGE)
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return templates.get_template(template).render(values, style=STYLE, thumbnail=thumbnail)


def thumbnail(file: str | Path) -> str:
    """The picture, SIDE pixels at most, as a data: URI; an empty one where it cannot be read."""
    try:
        small = decode_image(Path(file).read_bytes(), file)
    except (OSError, BrokenImage):
        return "data:,"
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_uri(small, quality=82)
