"""The ablations as one picture: means and standard deviations, and every run as a small dot."""

from pathlib import Path

from minigpt4.common.logger import pyplot

INK, SOFT, LINE = "#1d2733", "#5b6774", "#e3e6ea"
COLOURS = {"valid_loss": "#c26a1b", "cider": "#0b7a75"}
AXES = {"valid_loss": "validation loss\n(less is better)", "cider": "CIDEr\n(more is better)"}
ARCHITECTURES = {
    "base": "one layer,\nfrozen\nQ-Former",
    "no_qformer": "no\nQ-Former",
    "three_layers": "three\nlayers",
    "trained_qformer": "trained\nQ-Former",
}
SHARES = {"data_10": 10, "data_30": 30, "data_50": 50, "base": 100}  # percent of stage 1's data


def draw(arms: dict[str, dict], file: Path) -> None:
    """Architectures on the left, shares of the data on the right; validation loss above, CIDEr below; as PNG.

    Args:
        arms: see `ablations.summarize`; those that are missing leave a gap.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        2, 2, figsize=(8.6, 5.8), sharey="row", sharex="col", layout="constrained", facecolor="white"
    )
    places = dict(zip(ARCHITECTURES, range(len(ARCHITECTURES)), strict=True))
    for row, name in zip(axes, AXES, strict=True):
        for axis, at, line, aside in ((row[0], places, "none", 0.1), (row[1], SHARES, "-", 3)):
            points = [(x, arms[arm][name]) for arm, x in at.items() if arm in arms]
            if points:
                _errorbars(axis, points, COLOURS[name], line, aside)
            axis.grid(axis="y", color=LINE)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(colors=SOFT, labelsize=11)
        row[0].set_ylabel(AXES[name], color=INK, fontsize=11.5)
    axes[0, 0].set_title("The model, with all data", loc="left", fontsize=13, color=INK)
    axes[0, 1].set_title("The data, with one layer", loc="left", fontsize=13, color=INK)
    axes[1, 0].set_xticks(list(places.values()), ARCHITECTURES.values())
    axes[1, 0].set_xlim(-0.5, len(places) - 0.5)
    axes[1, 1].set_xlim(0, 110)
    axes[1, 1].set_xticks(list(SHARES.values()), [f"{share} %" for share in SHARES.values()])
    axes[1, 1].set_xlabel("share of stage 1's pictures", color=SOFT, fontsize=11.5)
    figure.supxlabel(_legend(arms), fontsize=10, color=SOFT, x=0.02, ha="left")
    figure.savefig(file, dpi=200)
    plt.close(figure)


def _errorbars(axis, points: list[tuple[float, dict]], colour: str, line: str, aside: float) -> None:
    """points: (x, {"mean", "std", "runs"}); single runs stand `aside` of their mean, where no bar hides them."""
    x, means = [x for x, _ in points], [value["mean"] for _, value in points]
    axis.plot(x, means, "o", linestyle=line, color=colour, markersize=7, linewidth=1.8)
    for x, value in points:
        if value["std"] is not None:
            axis.errorbar(x, value["mean"], value["std"], color=colour, capsize=5, elinewidth=1.8)
            axis.plot([x + aside] * len(value["runs"]), value["runs"], "o", color=colour, alpha=0.35, markersize=4)


def _legend(arms: dict[str, dict]) -> str:
    fewest, most = (pick(len(arm["seeds"]) for arm in arms.values()) for pick in (min, max))
    if most == 1:
        return "One run each: no error bars."
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"Mean and standard deviation over n = {count} seeds; small dots: single runs."
