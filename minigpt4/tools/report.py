"""The quickstart's report: a page in one HTML file that needs nothing else, and the same as a picture."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from . import report_picture
from . import report_text as words


def write(results: dict, pictures: Path, out: Path) -> None:
    """Write `out/report.html` and `out/report.png`.

    Args:
        results: as `results.json` holds it.
        pictures: the folder that the `image` of each picture is relative to.
    """
    curves = report_picture.draw_curves(results["losses"])
    (out / "report.html").write_text(html_page(results, pictures, curves), encoding="utf-8")
    report_picture.draw(results, pictures, curves).save(out / "report.png", optimize=True)


# -- the page -------------------------------------------------------------------------------------------------------


def html_page(results: dict, pictures: Path, curves: bytes) -> str:
    """The page as text. Pictures and curves (PNG) are embedded; nothing is loaded from anywhere."""
    vocabulary = words.vocabulary(results)
    cards = "\n".join(_card(picture, pictures, vocabulary) for picture in words.shown_pictures(results))
    bars = "\n".join(_bars(results, name, label) for name, label in words.HEADLINE.items())
    notes = "\n".join(_note(head, text) for head, text in words.about(results))
    chart = f'<img src="{data_uri(curves, "png")}" alt="loss of both stages against the optimizer step">'
    legend = _marked([("in the picture", "right"), (" ", ""), ("not there", "wrong")])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MiniGPT-4 quickstart</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">MiniGPT-4 quickstart</p>
<h1>{escape(words.headline(results))}</h1>
<p class="lead">{escape(words.subtitle(results))}</p>
</header>
<div class="pair">{bars}</div>
<h2>Training</h2>
<figure class="panel">{chart}</figure>
<h2>{len(results["shown"])} held-out pictures</h2>
<p class="legend">Objects in the answers: {legend}</p>
<div class="cards">
{cards}
</div>
<h2>All numbers</h2>
<div class="pair tables">{_score_table(results)}{_time_table(results["seconds"])}</div>
<h2>How to read this</h2>
<div class="notes">{notes}</div>
<footer>{escape(words.CREDIT)}</footer>
</body>
</html>
"""


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _note(head: str, text: str) -> str:
    return f"<section><h3>{escape(head)}</h3><p>{escape(text)}</p></section>"


def _bars(results: dict, name: str, label: str) -> str:
    """One headline number for both stages, as bars with their intervals."""
    rows = []
    for stage, title in words.STAGES.items():
        score = {k: 100 * v for k, v in results["scores"][stage][name].items()}
        rows.append(
            f'<div class="row {stage}"><span>{title}</span><div class="track">'
            f'<div class="bar" style="width:{score["value"]:.1f}%"></div>'
            f'<div class="whisker" style="left:{score["low"]:.1f}%;width:{score["high"] - score["low"]:.1f}%"></div>'
            f"</div><b>{score['value']:.0f}%</b></div>"
        )
    head = f"<h3>{escape(label)} <small>{words.WISHES[name]}</small></h3>"
    return f'<section class="panel">{head}{"".join(rows)}</section>'


def _card(picture: dict, folder: Path, vocabulary) -> str:
    file = folder / picture["image"]
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    answers = "".join(
        f'<h4 class="{stage}">{title}{_flaws(picture[stage])}</h4>'
        f"<p>{_marked(words.segments(picture[stage]['answer'], picture, vocabulary))}</p>"
        for stage, title in words.STAGES.items()
    )
    return (
        f'<article class="panel"><div class="seen"><img src="{data_uri(file.read_bytes(), kind)}" '
        f'alt="{escape(picture["caption"])}">'
        f'<p class="truth">{escape(words.truth(picture))}</p></div><div class="said">{answers}</div></article>'
    )


def _flaws(judged: dict) -> str:
    return "".join(f" <small>{word}</small>" for word in words.flaws(judged))


def _marked(parts: Iterable[tuple[str, str]]) -> str:
    html = "".join(f'<mark class="{kind}">{escape(text)}</mark>' if kind else escape(text) for text, kind in parts)
    return html or "<i>nothing</i>"


def _score_table(results: dict) -> str:
    columns = [*(results["scores"][stage] for stage in words.STAGES), results["difference"]]
    rows = []
    for name, (label, form) in words.MEASURES.items():
        signed = form.replace("{:", "{:+")
        cells = [_cell(column[name], signed if i == 2 else form) for i, column in enumerate(columns)]
        rows.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
        if name == "objects_right":
            swapped = "".join(f"<td>{_percent(results['swapped'][stage])}</td>" for stage in words.STAGES)
            rows.append(f"<tr><th>… with answers and pictures shuffled</th>{swapped}<td></td></tr>")
    head = "".join(f"<th>{title}</th>" for title in ("", *words.STAGES.values(), "difference"))
    return f'<div class="panel"><table><tr>{head}</tr>{"".join(rows)}</table><p>{escape(words.RULES)}</p></div>'


def _cell(score: dict[str, float], form: str) -> str:
    low, high = form.format(score["low"]), form.format(score["high"])
    return f"<td>{form.format(score['value'])}<small>{low} … {high}</small></td>".replace("-", "−")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _time_table(seconds: dict[str, float]) -> str:
    taken = [(name, seconds[step]) for step, name in words.STEP_NAMES.items() if step in seconds]
    rows = "".join(f"<tr><th>{name}</th><td>{words.duration(s)}</td></tr>" for name, s in taken)
    total = words.duration(sum(s for _, s in taken))
    return f'<div class="panel"><table>{rows}<tr class="total"><th>together</th><td>{total}</td></tr></table></div>'


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
