"""The results as a table for the console, and as a block and a plot in docs/performance.md."""

import json
import shutil
from pathlib import Path

from minigpt4.common.paths import PROJECT

PAGE = PROJECT / "docs" / "performance.md"
BEGIN, END = "<!-- `make bench` writes from here -->", "<!-- to here -->"
HEAD = ("what", "unit", "ours", "peer", "times as good", "two threads", "target", "reached")


def write(results: dict, folder: Path) -> None:
    """performance.json, .png and .md in `folder`. The page keeps all text around its block."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE.name
    if not page.exists():
        shutil.copy(PAGE, page)
    page.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, page.with_suffix(".png"))
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{block(results)}{END}{rest.partition(END)[2]}")


def block(results: dict) -> str:
    """What stands between the markers."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = ["", f"{results['date']}, {results['machine']}; {versions}; {results['seconds']:.0f} s."]
    if results["quick"]:
        lines += ["", "**Tiny sizes: the figures mean nothing.**"]
    lines += ["", f"![Reached shares of the targets]({PAGE.stem}.png)", "", *table(results), ""]
    for name, part in results["rows"].items():
        if "why" in part:
            lines += [f"`{name}` was not measured: {part['why']}", ""]
    return "\n".join(lines)


def table(results: dict) -> list[str]:
    """A line for each line of each row."""
    found = [row(HEAD), "|---" * len(HEAD) + "|"]
    for part in results["rows"].values():
        for one in part["lines"]:
            two = one.get("two_threads") or {}
            wall = two and f"{shown(two['ours'])} {two['unit']}" + (f", {two['ratio']:.2f}x" if two["ratio"] else "")
            peer = f"{shown(one['peer'])} ({one['against']})" if one["peer"] is not None else ""
            what = f"{one['what']} ({one['note']})" if one["note"] else one["what"]
            ratio = f"{one['ratio']:.2f}x" if one["ratio"] else ""
            target = one["target"].replace("ratio", "").replace("ours", "").strip()
            target += "x" * one["target"].startswith("ratio")
            found.append(row([what, one["unit"], shown(one["ours"]), peer, ratio, wall or "", target, reached(one)]))
    return found


def row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def shown(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def reached(line: dict) -> str:
    share = line["reached"]
    return "" if share is None else "met" if share >= 1 else f"{share:.0%}"


def plot(results: dict, file: Path) -> None:
    """A bar for each line with a target: the share of it that is reached, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [one for part in results["rows"].values() for one in part["lines"] if one["reached"]]
    lines = lines[::-1] or [{"what": "no row with a target was measured", "against": "", "reached": 1}]
    names = [f"{one['what']}, {one['against']}" if one["against"] else one["what"] for one in lines]
    shares = [one["reached"] for one in lines]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.24 * len(lines)))
    axes.barh(names, shares, color=["#2b9a66" if share >= 1 else "#d9480f" for share in shares])
    axes.axvline(1, color="#5b6570", lw=1)
    axes.set_xscale("log")
    axes.set_xlabel("reached share of the target; 1: met")
    axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=130, metadata={"Software": None})
    plt.close(figure)
