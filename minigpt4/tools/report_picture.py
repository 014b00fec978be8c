"""The report as one picture, for those without a browser: curves by matplotlib, the sheet by Pillow."""

import io
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..common.logger import pyplot
from . import report_text as words

WIDTH, MARGIN, GAP = 1600, 60, 28  # pixels
INK, SOFT, LINE, PAPER = "#1d2733", "#5b6774", "#e3e6ea", "#f5f6f7"
COLOURS = {"stage1": "#c26a1b", "stage2": "#0b7a75"}
MARKS = {"right": ("#cdeed6", "#0f4a24"), "wrong": ("#fbd5d1", "#7d1a12")}  # background, ink


def draw_curves(losses: dict[str, dict[str, list[float]]]) -> bytes:
    """The loss of each stage against its optimizer steps, raw and smoothed, side by side, as PNG."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(losses), figsize=(11, 3.3), layout="constrained", squeeze=False)
    titles = {"stage1": "Stage 1: short captions", "stage2": "Stage 2: detailed descriptions"}
    for axis, (stage, log) in zip(axes[0], losses.items(), strict=True):
        if log["step"]:
            axis.plot(log["step"], log["loss"], color="#c3c9d0", linewidth=1)
            axis.plot(log["step"], smoothed(log["loss"]), color=COLOURS[stage], linewidth=2.2)
        axis.set_title(titles[stage], loc="left", fontsize=11, color=INK)
        axis.set_xlabel("optimizer step", color=SOFT)
        axis.set_ylabel("loss (nats a token)", color=SOFT)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=SOFT)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    plt.close(figure)
    return buffer.getvalue()


def smoothed(values: list[float]) -> list[float]:
    """Mean over a window around each value, a fifteenth of all values wide; narrower where the loss falls at first."""
    half = max(1, len(values) // 30)
    out = []
    for i in range(len(values)):
        reach = min(half, i)
        window = values[i - reach : i + reach + 1]
        out.append(sum(window) / len(window))
    return out


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it along, so that every machine has it."""
    data = pyplot().matplotlib.get_data_path()
    return ImageFont.truetype(Path(data, "fonts", "ttf", f"DejaVuSans{'-Bold' * bold}.ttf"), size)


class Sheet:
    """A tall page that is drawn from top to bottom; `y` is where the next thing goes."""

    def __init__(self, height: int = 12000):
        self.image = Image.new("RGB", (WIDTH, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN

    def text(self, parts, x: int, y: int, width: int, size: int, ink: str = INK, bold: bool = False) -> int:
        """Wrapped text at (x, y); marked words stand on colour. Returns the y below it.

        Args:
            parts: a text, or [(text, "" | "right" | "wrong")].
        """
        face, parts = font(size, bold), [(parts, "")] if isinstance(parts, str) else parts
        step, right, at = round(1.42 * size), x + width, x
        for text, kind in parts:
            for piece in _pieces(text):
                if piece.isspace():
                    at += face.getlength(" ") if at > x else 0
                    continue
                length = face.getlength(piece)
                if at > x and at + length > right:
                    at, y = x, y + step
                background, colour = MARKS.get(kind, (None, ink))
                if background:
                    box = (at - 3, y - 1, at + length + 3, y + round(1.24 * size))
                    self.draw.rounded_rectangle(box, radius=4, fill=background)
                if kind == "wrong":  # not by colour alone
                    foot = y + round(1.2 * size)
                    self.draw.line((at, foot, at + length, foot), fill=colour, width=2)
                self.draw.text((at, y), piece, font=face, fill=colour)
                at += length
        return y + step

    def panel(self, x: int, y: int, width: int, height: int) -> None:
        self.draw.rounded_rectangle((x, y, x + width, y + height), radius=14, fill="white", outline=LINE, width=2)

    def heading(self, text: str) -> None:
        self.y = self.text(text, MARGIN, self.y + 14, WIDTH - 2 * MARGIN, 28, bold=True) + 8


def _pieces(text: str) -> list[str]:
    """Words and blanks in turn; a word longer than a line is cut, as nothing else could be done with it."""
    return re.findall(r"\s+|\S{1,40}", text)


def draw(results: dict, pictures: Path, curves: bytes) -> Image.Image:
    """The whole report as one RGB image, WIDTH pixels wide. Arguments as for `report.write`."""
    sheet, inner = Sheet(), WIDTH - 2 * MARGIN
    sheet.y = sheet.text(words.headline(results), MARGIN, sheet.y, inner, 39, bold=True) + 6
    sheet.y = sheet.text(words.subtitle(results), MARGIN, sheet.y, inner, 22, SOFT) + 20
    for i, name in enumerate(words.HEADLINE):
        _draw_bars(sheet, results, name, MARGIN + i * (inner + GAP) // 2, (inner - GAP) // 2)
    sheet.y += 180 + GAP

    plot = Image.open(io.BytesIO(curves)).convert("RGB")
    plot = plot.resize((inner - 40, round(plot.height * (inner - 40) / plot.width)), Image.Resampling.LANCZOS)
    sheet.panel(MARGIN, sheet.y, inner, plot.height + 40)
    sheet.image.paste(plot, (MARGIN + 20, sheet.y + 20))
    sheet.y += plot.height + 40 + GAP

    shown, vocabulary = words.shown_pictures(results), words.vocabulary(results)
    sheet.heading(f"{len(shown)} held-out pictures")
    legend = [("Objects in the answers: ", ""), ("in the picture", "right"), ("  ·  ", ""), ("not there", "wrong")]
    sheet.y = sheet.text(legend, MARGIN, sheet.y, inner, 20, SOFT) + 10
    for at in range(0, len(shown), 2):
        _draw_row(sheet, shown[at : at + 2], pictures, vocabulary)
    sheet.y += 6
    for head, text in words.about(results):
        sheet.y = sheet.text(head, MARGIN, sheet.y, inner, 20, bold=True)
        sheet.y = sheet.text(text, MARGIN, sheet.y, inner, 19, SOFT) + 10
    seconds = results["seconds"]
    taken = [f"{name} {words.duration(seconds[k])}" for k, name in words.STEP_NAMES.items() if k in seconds]
    sheet.y = sheet.text("Time: " + ", ".join(taken) + ". " + words.CREDIT, MARGIN, sheet.y, inner, 17, SOFT)
    return sheet.image.crop((0, 0, WIDTH, sheet.y + MARGIN // 2))


def _draw_bars(sheet: Sheet, results: dict, name: str, x: int, width: int) -> None:
    measure = results["measures"][name]
    sheet.panel(x, sheet.y, width, 180)
    sheet.text(measure["label"], x + 24, sheet.y + 18, width - 48, 22, bold=True)
    wish, face = f"{measure['better']} is better", font(18)
    sheet.text(wish, round(x + width - 24 - face.getlength(wish)), sheet.y + 21, width, 18, SOFT)
    left, full = x + 200, width - 330
    for i, (stage, title) in enumerate(words.STAGES.items()):
        y, score = sheet.y + 66 + 54 * i, results["scores"][stage][name]
        sheet.text(title, x + 24, y + 6, 190, 20, SOFT)
        sheet.draw.rounded_rectangle((left, y, left + full, y + 36), radius=6, fill="#eef0f2")
        if score["value"] > 0.005:
            bar = (left, y, left + max(12, full * score["value"]), y + 36)
            sheet.draw.rounded_rectangle(bar, radius=6, fill=COLOURS[stage])
        sheet.draw.line((left + full * score["low"], y + 18, left + full * score["high"], y + 18), fill=INK, width=3)
        sheet.text(f"{score['value']:.0%}", left + full + 18, y, 110, 28, COLOURS[stage], bold=True)


def _draw_row(sheet: Sheet, row: list[dict], folder: Path, vocabulary) -> None:
    """Two cards side by side, as high as the higher one: measured first, then drawn."""
    width = (WIDTH - 2 * MARGIN - GAP) // 2
    height = max(_draw_card(Sheet(6000), picture, folder, vocabulary, 0, width) - MARGIN for picture in row)
    for i, picture in enumerate(row):
        x = MARGIN + i * (width + GAP)
        sheet.panel(x, sheet.y, width, height)
        _draw_card(sheet, picture, folder, vocabulary, x, width)
    sheet.y += height + GAP


def _draw_card(sheet: Sheet, picture: dict, folder: Path, vocabulary, x: int, width: int) -> int:
    """A picture with its two answers at (x, sheet.y). Returns the y below the card."""
    side, y = 240, sheet.y + 22
    with Image.open(folder / picture["image"]) as image:
        sheet.image.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x + 22, y))
    below = sheet.text(words.truth(picture), x + 22, y + side + 8, side, 18, SOFT)
    left = x + side + 44
    for stage, title in words.STAGES.items():
        flaw = picture[stage]["failure"]
        head = title + (f"  ({flaw})" if flaw else "")
        y = sheet.text(head, left, y, width - side - 66, 18, COLOURS[stage], bold=True)
        parts = words.segments(picture[stage]["answer"], picture, vocabulary) or [("(nothing)", "")]
        y = sheet.text(parts, left, y, width - side - 66, 19) + 12
    return max(below, y) + 14
