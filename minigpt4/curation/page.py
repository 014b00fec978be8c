"""Show the result: a table for the terminal, and report.html with pictures."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..evaluation.page import SHOWN, card, document
from .clean import DROPS, LOSSES


def counts(entries: Sequence[dict]) -> dict[str, str]:
    """Label -> number."""
    kept = [entry for entry in entries if entry["text"]]
    lost = Counter(entry["lost"] for entry in entries if not entry["text"])
    said = Counter(s["dropped"] for entry in entries for s in entry["sentences"])
    words = sum(len(entry["text"].split()) for entry in kept)
    rows = {"photos": len(entries), "… kept": len(kept)}
    rows |= {f"… dropped: {why}": lost[why] for why in LOSSES if lost[why]}
    rows |= {"sentences of the model": said.total(), "… of them kept": said[""]}
    rows |= {f"… of them dropped: {why}": said[why] for why in DROPS if said[why]}
    rows["human captions added"] = sum(len(entry["added"]) for entry in kept)
    rows["texts with a sentence of the model"] = sum(any(not s["dropped"] for s in e["sentences"]) for e in kept)
    return {**{k: f"{n:,}" for k, n in rows.items()}, "words a text, mean": f"{words / max(len(kept), 1):.1f}"}


def table(entries: Sequence[dict]) -> str:
    """For the terminal."""
    rows = counts(entries)
    wide, number = max(map(len, rows)), max(map(len, rows.values()))
    return "\n".join(f"{label:{wide}}  {value:>{number}}" for label, value in rows.items())


def html_page(entries: Sequence[dict], args: argparse.Namespace) -> str:
    """The page as text; pictures are embedded, small."""
    shown = list(entries)
    random.Random(8).shuffle(shown)
    cards = "\n".join(_card(entry) for entry in shown[:SHOWN])
    body = "".join(f"<tr><th>{escape(label)}</th><td>{value}</td></tr>" for label, value in counts(entries).items())
    split = f", {' + '.join(args.split)}" if args.split else ""
    editor = f"{args.judge_model} at {args.judge}, then " if args.judge else ""
    rules = "the rules of form" if args.unchecked else "the rules of form and each photo's human captions"
    what = f"{Path(args.cfg_path).name} on {Path(args.data).name}{split}: {len(entries):,} photos"
    lead = f"{what}. Asked: “{args.prompt}” Cleaned by {editor}{rules}."
    return document("Stage 2's pairs", "curation", lead, f"""
<div class="panel"><table class="alone">{body}</table></div>
<h2>{min(SHOWN, len(shown))} of {len(shown):,} photos</h2>
<p class="legend">The first of a random order that never changes, not the best. What the model said:
<mark class="right">kept</mark> <mark class="wrong">dropped</mark>; below it the text for stage 2
and the human captions.</p>
<div class="cards">
{cards}
</div>
<footer>All of them are in curation.jsonl; docs/curation.md explains the rules.</footer>""")  # fmt: skip


def _card(entry: dict) -> str:
    said = " ".join(
        f'<mark class="{"wrong" if s["dropped"] else "right"}">{escape(s["text"])}</mark>'
        f"{' <small>' + escape(s['dropped']) + '</small>' if s['dropped'] else ''}"
        for s in entry["sentences"]
    )
    text = escape(entry["text"]) or f"<i>photo dropped: {escape(entry['lost'])}</i>"
    truth = " · ".join(escape(caption) for caption in entry["captions"])
    return card(
        Path(entry["image"]),
        f'<h4 class="first">the model</h4><p>{said or "<i>nothing</i>"}</p>'
        f'<h4 class="last">the pair</h4><p>{text}</p><p class="truth">{truth}</p>',
    )
