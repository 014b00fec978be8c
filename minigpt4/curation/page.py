"""Show the result: a table for the terminal, and report.html with pictures."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..evaluation.page import SHOWN, STYLE, thumbnail
from .clean import DROPS, LOSSES


def counts(entries: Sequence[dict]) -> list[tuple[str, str]]:
    """Rows of the table: (label, number)."""
    kept = [entry for entry in entries if entry["text"]]
    lost = Counter(entry["lost"] for entry in entries if not entry["text"])
    said = Counter(s["dropped"] for entry in entries for s in entry["sentences"])
    words = sum(len(entry["text"].split()) for entry in kept)
    rows = [("photos", len(entries)), ("… kept", len(kept))]
    rows += [(f"… dropped: {why}", lost[why]) for why in LOSSES if lost[why]]
    rows += [("sentences of the model", said.total()), ("… kept", said[""])]
    rows += [(f"… dropped: {why}", said[why]) for why in DROPS if said[why]]
    rows += [("human captions added", sum(len(entry["added"]) for entry in kept))]
    rows += [("texts with a sentence of the model", sum(any(not s["dropped"] for s in e["sentences"]) for e in kept))]
    found = [(label, f"{number:,}") for label, number in rows]
    return [*found, ("words a text, mean", f"{words / max(len(kept), 1):.1f}")]


def table(entries: Sequence[dict]) -> str:
    """For the terminal."""
    rows = counts(entries)
    wide, number = max(len(label) for label, _ in rows), max(len(value) for _, value in rows)
    return "\n".join(f"{label:{wide}}  {value:>{number}}" for label, value in rows)


def html_page(entries: Sequence[dict], args: argparse.Namespace) -> str:
    """The page as text; pictures are embedded, small."""
    shown = list(entries)
    random.Random(8).shuffle(shown)
    cards = "\n".join(_card(entry) for entry in shown[:SHOWN])
    body = "".join(f"<tr><th>{escape(label)}</th><td>{value}</td></tr>" for label, value in counts(entries))
    split = f", {' + '.join(args.split)}" if args.split else ""
    editor = f"{args.judge_model} at {args.judge}, then " if args.judge else ""
    rules = "the rules of form" if args.unchecked else "the rules of form and each photo's human captions"
    what = f"{Path(args.cfg_path).name} on {Path(args.data).name}{split}: {len(entries):,} photos"
    lead = f"{what}. Asked: “{args.prompt}” Cleaned by {editor}{rules}."
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Stage 2's pairs · MiniGPT-4 curation</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">MiniGPT-4 curation</p>
<h1>Stage 2's pairs</h1>
<p class="lead">{escape(lead)}</p>
</header>
<div class="panel"><table class="alone">{body}</table></div>
<h2>{min(SHOWN, len(shown))} of {len(shown):,} photos</h2>
<p class="legend">The first of a random order that never changes, not the best. What the model said:
<mark class="right">kept</mark> <mark class="wrong">dropped</mark>; below it the text for stage 2
and the human captions.</p>
<div class="cards">
{cards}
</div>
<footer>All of them are in curation.jsonl; docs/curation.md explains the rules.</footer>
</body>
</html>
"""


def _card(entry: dict) -> str:
    said = " ".join(
        f'<mark class="{"wrong" if s["dropped"] else "right"}">{escape(s["text"])}</mark>'
        f"{' <small>' + escape(s['dropped']) + '</small>' if s['dropped'] else ''}"
        for s in entry["sentences"]
    )
    text = escape(entry["text"]) or f"<i>photo dropped: {escape(entry['lost'])}</i>"
    truth = " · ".join(escape(caption) for caption in entry["captions"])
    return (
        f'<article class="panel"><div class="seen"><img src="{thumbnail(Path(entry["image"]))}" alt=""></div>'
        f'<div class="said"><h4 class="stage1">the model</h4><p>{said or "<i>nothing</i>"}</p>'
        f'<h4 class="stage2">the pair</h4><p>{text}</p><p class="truth">{truth}</p></div></article>'
    )
