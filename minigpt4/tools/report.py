"""The quickstart's report: a page in one HTML file that needs nothing else, and the same as a picture."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from ..evaluation.page import STYLE, cell
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
    bars = "\n".join(_bars(results, name) for name in words.HEADLINE)
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


def _bars(results: dict, name: str) -> str:
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
    measure = results["measures"][name]
    head = f"<h3>{escape(measure['label'])} <small>{measure['better']} is better</small></h3>"
    return f'<section class="panel">{head}{"".join(rows)}</section>'


def _card(picture: dict, folder: Path, vocabulary) -> str:
    file = folder / picture["image"]
    kind = "png" if file.suffix.lower() == ".png" else "jpeg"
    answers = "".join(
        f'<h4 class="{stage}">{title}{_flaw(picture[stage])}</h4>'
        f"<p>{_marked(words.segments(picture[stage]['answer'], picture, vocabulary))}</p>"
        for stage, title in words.STAGES.items()
    )
    return (
        f'<article class="panel"><div class="seen"><img src="{data_uri(file.read_bytes(), kind)}" '
        f'alt="{escape(picture["caption"])}">'
        f'<p class="truth">{escape(words.truth(picture))}</p></div><div class="said">{answers}</div></article>'
    )


def _flaw(judged: dict) -> str:
    return judged["failure"] and f" <small>{judged['failure']}</small>"


def _marked(parts: Iterable[tuple[str, str]]) -> str:
    html = "".join(f'<mark class="{kind}">{escape(text)}</mark>' if kind else escape(text) for text, kind in parts)
    return html or "<i>nothing</i>"


def _score_table(results: dict) -> str:
    columns = [*(results["scores"][stage] for stage in words.STAGES), results["difference"]]
    rows = []
    for name, measure in results["measures"].items():
        cells = [cell(column[name], measure["form"], column is results["difference"]) for column in columns]
        tds = "".join(f"<td>{value}<small>{interval}</small></td>" for value, interval in cells)
        rows.append(f"<tr><th>{escape(measure['label'])}</th>{tds}</tr>")
        if name == "objects_right":
            swapped = "".join(f"<td>{_percent(results['swapped'][stage])}</td>" for stage in words.STAGES)
            rows.append(f"<tr><th>… with answers and pictures shuffled</th>{swapped}<td></td></tr>")
    head = "".join(f"<th>{title}</th>" for title in ("", *words.STAGES.values(), "difference"))
    return f'<div class="panel"><table><tr>{head}</tr>{"".join(rows)}</table><p>{escape(words.RULES)}</p></div>'


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _time_table(seconds: dict[str, float]) -> str:
    taken = [(name, seconds[step]) for step, name in words.STEP_NAMES.items() if step in seconds]
    rows = "".join(f"<tr><th>{name}</th><td>{words.duration(s)}</td></tr>" for name, s in taken)
    total = words.duration(sum(s for _, s in taken))
    return f'<div class="panel"><table>{rows}<tr class="total"><th>together</th><td>{total}</td></tr></table></div>'
