"""Draws docs/model.png, the model in one picture: `python docs/make_figure.py`.

Units are pixels of the picture at 900 px width; y grows downwards. Nothing is random: the same matplotlib
writes the same file.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

WIDTH, HEIGHT = 900, 548
ICE, ICE_EDGE, ICE_TEXT = "#e4eff9", "#6d9dc5", "#1d3d5c"
HOT, HOT_EDGE, HOT_PALE = "#f76707", "#d9480f", "#ffd8b8"
GREEN, GREEN_EDGE = "#2b9a66", "#1f7a50"
GREEN_FILL = "#e3f5ec"
GREY, GREY_FILL, GREY_EDGE, INK = "#78838f", "#eef1f4", "#c3ccd5", "#26323e"

# MiniGPT-4 with Vicuna-13B
PARAMETERS = {"EVA-ViT-g": 986e6, "Q-Former": 105e6, "Vicuna-13B": 13.0e9, "llama_proj": 768 * 5120 + 5120}


def px(size: float) -> float:
    """Font size in points of `size` pixels at 900 px width."""
    return size * 0.72


class Figure:
    """A canvas with the few shapes that the picture is made of."""

    def __init__(self):
        plt.rcParams["font.family"] = "DejaVu Sans"  # comes with matplotlib: the same picture everywhere
        self.figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100))
        self.axes = self.figure.add_axes([0, 0, 1, 1])
        self.axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        self.axes.axis("off")

    def text(self, x, y, s, size=13, color=INK, ha="center", va="center", **kwargs):
        self.axes.text(x, y, s, fontsize=px(size), color=color, ha=ha, va=va, **kwargs)

    def box(self, x, y, w, h, fill, edge, radius=8, width=1.4):
        style = f"round,pad=0,rounding_size={radius}"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=fill, ec=edge, lw=width))

    def line(self, points, color=GREY, width=1.6, arrow=True, dashed=False):
        """A path through `points`, with an arrow head at its end."""
        xs, ys = zip(*points, strict=True)
        style = {"color": color, "lw": width, "solid_capstyle": "round", "solid_joinstyle": "round"}
        if arrow:  # stop the stroke inside the head, so that it does not show at the tip
            (x0, y0), (x1, y1) = points[-2:]
            length = abs(x1 - x0) + abs(y1 - y0)
            dx, dy = (x1 - x0) / length, (y1 - y0) / length
            xs, ys = (*xs[:-1], x1 - 5 * dx), (*ys[:-1], y1 - 5 * dy)
            side = 3.2 + width
            head = [(x1, y1), (x1 - 9 * dx + side * dy, y1 - 9 * dy + side * dx),
                    (x1 - 9 * dx - side * dy, y1 - 9 * dy - side * dx)]  # fmt: skip
            self.axes.add_patch(Polygon(head, closed=True, fc=color, ec="none", zorder=3))
        self.axes.plot(xs, ys, ls=(0, (4, 3)) if dashed else "-", **style)

    def frozen(self, x, y, w, h, name, lines, layers=0):
        """A frozen module: an ice-blue box with a snowflake; `layers` faint bars hint at its depth."""
        self.box(x, y, w, h, ICE, ICE_EDGE)
        for i in range(1, layers):
            xi = x + w * i / layers
            self.axes.plot([xi, xi], [y + 1, y + h - 1], color="white", lw=2.2, zorder=1.5)
        self.text(x + w - 13, y + 14, "❄", 15, ICE_EDGE)
        spacing = 18
        top = y + h / 2 - spacing * len(lines) / 2
        self.text(x + w / 2, top, name, 16, ICE_TEXT, weight="bold", zorder=4)
        for i, line in enumerate(lines, start=1):
            self.text(x + w / 2, top + 2 + spacing * i, line, 12.5, ICE_TEXT, zorder=4)


def draw_image(fig: Figure, x: float, y: float, size: float) -> None:
    """A little landscape behind the 16 x 16 grid of patches that the ViT cuts."""
    fig.axes.add_patch(Rectangle((x, y), size, size, fc="#bfe3f7", ec="none"))
    shapes = [  # in shares of the side: two mountains, a meadow
        ("#7f9fb5", [(0, 0.72), (0.32, 0.34), (0.66, 0.76), (0, 1)]),
        ("#5d8a7a", [(0.24, 0.8), (0.68, 0.44), (1, 0.72), (1, 1), (0, 1)]),
        ("#8fbf6a", [(0, 0.78), (0.5, 0.7), (1, 0.82), (1, 1), (0, 1)]),
    ]
    fig.axes.add_patch(Circle((x + 0.76 * size, y + 0.24 * size), 0.11 * size, fc="#ffd43b"))
    for color, corners in shapes:
        fig.axes.add_patch(Polygon([(x + size * u, y + size * v) for u, v in corners], fc=color))
    for i in range(17):
        at = size * i / 16
        edge = i in (0, 16)
        style = {"color": "#4c6272", "lw": 1.4} if edge else {"color": "white", "lw": 0.5, "alpha": 0.75}
        fig.axes.plot([x + at, x + at], [y, y + size], **style)
        fig.axes.plot([x, x + size], [y + at, y + at], **style)


def draw_vision(fig: Figure) -> float:
    """The first row, image to llama_proj. Returns the x of llama_proj's centre."""
    top, height = 76, 104
    middle = top + height / 2
    draw_image(fig, 26, top, height)
    fig.text(26 + height / 2, top + height + 15, "224 × 224 px", 12.5)

    fig.line([(134, middle), (164, middle)])
    fig.frozen(166, top, 148, height, "EVA-ViT-g", ["39 blocks", "986M"], layers=13)
    fig.line([(316, middle), (396, middle)])
    fig.text(355, middle - 13, "257 × 1408", 12.5)

    fig.box(398, top, 30, height, ICE, ICE_EDGE)
    fig.text(413, middle, "ln_vision", 13.5, ICE_TEXT, rotation=90, weight="bold")
    fig.line([(430, middle), (456, middle)])

    fig.frozen(458, top, 148, height, "Q-Former", ["12 layers", "105M"], layers=12)
    for i in range(32):
        fig.axes.add_patch(Rectangle((460 + 4.5 * i, 42), 3.2, 12, fc=ICE_EDGE, ec="none"))
    fig.text(532, 29, "32 learned queries  ❄", 12.5, ICE_TEXT)
    fig.line([(532, 57), (532, 74)], ICE_EDGE)
    fig.line([(608, middle), (682, middle)])
    fig.text(643, middle - 13, "32 × 768", 12.5)

    x, width = 684, 160
    trained = f"trained: {PARAMETERS['llama_proj'] / 1e6:.2f}M"
    fig.box(x, top, width, height, HOT, HOT_EDGE, width=2)
    fig.text(x + width / 2, middle - 28, "llama_proj", 18, "white", weight="bold")
    fig.text(x + width / 2, middle - 3, "Linear 768 → 5120", 13, "white")
    fig.text(x + width / 2, middle + 23, trained, 14, "white", weight="bold")
    return x + width / 2


def draw_sequence(fig: Figure, proj_x: float) -> None:
    """The second to fourth rows: the sequence, Vicuna, the labels."""
    top, height = 276, 44
    llm_top, llm_height = 350, 66
    label_top, label_height = 448, 30
    cells = [  # name, width, what stands in it
        ("BOS", 46, "<s>"),
        ("prompt before", 132, "###Human: <Img>"),
        ("32 image tokens", 236, None),
        ("prompt after", 204, "</Img> Describe this\nimage … ###Assistant:"),
        ("text", 200, "A valley at noon with\na lake and hills.###"),
    ]
    x = 26
    for name, width, content in cells:
        centre = x + width / 2
        image, text = content is None, name == "text"
        color = HOT_EDGE if image else GREEN_EDGE if text else INK
        if image:
            for i in range(32):
                cell = Rectangle((x + width * i / 32, top), width / 32 - 1.6, height, fc=HOT, ec="none")
                cell.set_alpha(0.62 + 0.38 * ((i * 7) % 32) / 31)
                fig.axes.add_patch(cell)
            enter = x + 0.64 * width
            fig.line([(proj_x, 182), (proj_x, 228), (enter, 228), (enter, top - 3)], HOT, 3)
            fig.text((proj_x + centre) / 2 + 40, 215, "32 × 5120", 12.5, HOT_EDGE, weight="bold")
        else:
            fill, edge = (GREEN_FILL, GREEN) if text else (GREY_FILL, GREY_EDGE)
            fig.box(x, top, width, height, fill, edge, radius=5)
            mono = {"family": "DejaVu Sans Mono", "linespacing": 1.35}
            fig.text(centre, top + height / 2, content, 12, color, **mono)
        at, align = (x, "left") if image else (centre, "center")  # left of the arrow from above
        fig.text(at, top - 13, name, 13, color, ha=align, weight="bold")
        fig.line([(centre, top + height + 3), (centre, llm_top - 2)], color if image or text else GREY)
        fig.line([(centre, llm_top + llm_height + 2), (centre, label_top - 2)], GREEN if text else GREY_EDGE)
        if text:
            fig.box(x, label_top, width, label_height, GREEN, GREEN_EDGE, radius=5)
            fig.text(centre, label_top + label_height / 2, "loss: its own tokens", 13, "white", weight="bold")
            # the gradient goes back to the one thing that learns
            route = 886
            fig.line([(x + width + 2, label_top + 15), (route, label_top + 15), (route, 128), (848, 128)],
                     HOT_EDGE, 1.8, dashed=True)  # fmt: skip
            fig.text(route - 11, 236, "gradient", 12.5, HOT_EDGE, rotation=90)
        else:
            fig.box(x, label_top, width, label_height, GREY_FILL, GREY_EDGE, radius=5)
            fig.text(centre, label_top + label_height / 2, "−100", 12.5, GREY)
        x += width + 6
    fig.frozen(26, llm_top, x - 6 - 26, llm_height, "Vicuna-13B", ["40 blocks, 5120 wide"], layers=40)


def main() -> None:
    fig = Figure()
    fig.box(26, 22, 26, 18, ICE, ICE_EDGE, radius=4)
    fig.text(60, 31, "frozen ❄", 13, ICE_TEXT, ha="left")
    fig.box(140, 22, 26, 18, HOT, HOT_EDGE, radius=4)
    fig.text(174, 31, "trained", 13, HOT_EDGE, ha="left", weight="bold")
    draw_sequence(fig, draw_vision(fig))
    total = sum(PARAMETERS.values())
    share = PARAMETERS["llama_proj"] / total
    notes = ["labels: −100 takes no part in the loss", "stage 1 has no prompt: BOS, image, caption"]
    for line, note in enumerate(notes):
        fig.text(26, 505 + 21 * line, note, 12.5, GREY, ha="left")
    fig.text(864, 505, f"trained: {share:.2%} of {total / 1e9:.1f}B parameters", 12.5, HOT_EDGE, ha="right")
    target = Path(__file__).with_name("model.png")
    fig.figure.savefig(target, dpi=200, metadata={"Software": None})
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
