"""Draws docs/architecture.png, the rooms of minigpt4/ and who imports whom: `python docs/make_architecture.py`.

The imports are read from the sources. A room stands one row above the highest room that it imports.
"""

import sys
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT)]
from tests.unit.test_imports import FILES, PACKAGE, imported, room  # noqa: E402

WALKS = {  # the colour of a room: which walk of a user it belongs to
    "training": ("#e4eff9", "#6d9dc5", {"datasets", "models", "processors", "runners", "tasks"}),
    "chat": ("#e3f5ec", "#2b9a66", {"conversation", "serve"}),
    "tools around them": ("#ffe8d6", "#d9480f", {"checkup", "convert", "curation", "evaluation", "weights"}),
    "shared": ("#eef1f4", "#78838f", {"common"}),
}
ROW, WIDE, HIGH = 1.1, 1.9, 0.62


def rooms() -> dict[str, set[str]]:
    """Folder of minigpt4/ -> the other folders that its files import."""
    names = sorted({file.relative_to(PACKAGE).parts[0] for file in FILES if file.parent != PACKAGE})
    found: dict[str, set[str]] = {name: set() for name in names}
    for file in FILES:
        name = file.relative_to(PACKAGE).parts[0]
        if name in found:
            found[name] |= {room(other) for other in imported(file)} & found.keys() - {name}
    return found


def heights(imports: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its row from below. Raises ValueError when rooms import each other in a circle."""
    rows: dict[str, int] = {}
    while left := imports.keys() - rows.keys():
        ready = {name for name in left if imports[name] <= rows.keys()}
        if not ready:
            raise ValueError(f"these rooms import each other in a circle: {', '.join(sorted(left))}")
        rows |= {name: max((rows[other] + 1 for other in imports[name]), default=0) for name in ready}
    return rows


def direct(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without what a room also reaches through another one: fewer arrows, the same order."""

    def reached(name: str) -> set[str]:
        return imports[name] | {far for near in imports[name] for far in reached(near)}

    return {name: {o for o in others if not any(o in reached(n) for n in others)} for name, others in imports.items()}


def main() -> None:
    imports = rooms()
    rows = heights(imports)
    lines = Counter()
    for file in FILES:
        lines[file.relative_to(PACKAGE).parts[0]] += len(file.read_text(encoding="utf-8").splitlines())
    places = {}
    for row in sorted(set(rows.values())):
        names = sorted(name for name in rows if rows[name] == row)
        places |= {name: (2.3 * (i - (len(names) - 1) / 2), ROW * row) for i, name in enumerate(names)}

    plt.rcParams["font.family"] = "DejaVu Sans"  # comes with matplotlib: the same picture everywhere
    half = max(abs(x) for x, _ in places.values()) + WIDE / 2 + 1.5
    top = max(y for _, y in places.values()) + HIGH
    figure = plt.figure(figsize=(8, 8 * (top + 1.5) / (2 * half)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-half, half), ylim=(-1.2, top + 0.3))
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "mutation_scale": 11, "color": "#9aa5b1", "lw": 1.2, "zorder": 1}
    for name, others in direct(imports).items():
        for other in others:
            (x0, y0), (x1, y1) = places[name], places[other]
            if rows[name] - rows[other] == 1:
                ends, bend = ((x0, y0 - HIGH / 2), (x1, y1 + HIGH / 2)), 0
            else:  # around the rooms between them, from side to side
                side = 1 if x0 + x1 >= 0 else -1
                ends, bend = ((x0 + side * WIDE / 2, y0), (x1 + side * WIDE / 2, y1)), -0.3 * side
            axes.add_patch(FancyArrowPatch(*ends, connectionstyle=f"arc3,rad={bend}", **arrow))
    colours = {member: (fill, edge) for fill, edge, members in WALKS.values() for member in members}
    for name, (x, y) in places.items():
        fill, edge = colours.get(name, ("white", "black"))
        style = {"boxstyle": "round,pad=0,rounding_size=0.1", "fc": fill, "ec": edge, "lw": 1.4, "zorder": 2}
        axes.add_patch(FancyBboxPatch((x - WIDE / 2, y - HIGH / 2), WIDE, HIGH, **style))
        text = {"ha": "center", "va": "center", "zorder": 3}
        axes.text(x, y + 0.09, f"{name}/", fontsize=11, weight="bold", **text)
        axes.text(x, y - 0.16, f"{lines[name]:,} lines", fontsize=8, color="#5b6570", **text)
    note = "An arrow points to what a room imports. A room that is reached through another one has no arrow of its own."
    axes.text(0, -0.65, note, ha="center", fontsize=8.5, color="#5b6570")
    for i, (walk, (fill, edge, _)) in enumerate(WALKS.items()):
        x = (i - (len(WALKS) - 1) / 2) * half / 2.4
        axes.text(x, -0.95, walk, ha="center", fontsize=8.5, bbox={"boxstyle": "round", "fc": fill, "ec": edge})
    target = Path(__file__).with_name("architecture.png")
    figure.savefig(target, dpi=150, metadata={"Software": None})
    print(f"{target}: {len(places)} rooms, {sum(lines.values()):,} lines")


if __name__ == "__main__":
    main()
