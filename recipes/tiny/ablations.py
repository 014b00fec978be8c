"""`minigpt4 ablations`: the paper's ablations on the small model, each over several seeds: results, a table, a plot.

It takes the photos, features and Q-Former that `minigpt4 tiny` made. A run is a short stage 1 by train.py and its
figures; each step is a command that a user could type, and is printed as such. A later call reuses what is finished.
"""

import argparse
import json
import operator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from minigpt4.common.config import load_config
from minigpt4.common.errors import UserError
from minigpt4.common.logger import read_log
from minigpt4.common.paths import sha256
from minigpt4.evaluation.answering import digest
from minigpt4.evaluation.page import write_json
from recipes.steps import Clock, call, minutes

from .ablations_plot import draw
from .train import Places, chat_model, keep_to

CONFIG = "recipes/tiny/ablation.yaml"
HELD_OUT, LIMIT = "human_dev", "200"  # photos that no stage trains on; so many are described


@dataclass(frozen=True)
class Arm:
    """One way to train stage 1.

    Args:
        label: what people read.
        model: keys that the model is built by, in training and in evaluation.
        training: keys of the training alone.
    """

    label: str
    model: tuple[str, ...] = ()
    training: tuple[str, ...] = ()


def _of_the_data(percent: int) -> Arm:
    names = ("human_captions", "class_labels")
    shares = tuple(f"datasets.{name}.extra.share={percent / 100}" for name in names)
    return Arm(f"{percent} % of the data", training=shares)


ARMS = {
    "base": Arm("one linear layer, frozen Q-Former, all data"),
    "no_qformer": Arm("no Q-Former", model=("model.has_qformer=False",)),
    "three_layers": Arm("three layers", model=("model.proj_layers=3",)),
    "trained_qformer": Arm("trained Q-Former", training=("model.freeze_qformer=False",)),
    **{f"data_{percent}": _of_the_data(percent) for percent in (10, 30, 50)},
}
FIGURES = {  # name -> what people read, how it is written
    "valid_loss": ("validation loss", "{:.3f}"),
    "cider": ("CIDEr", "{:.3f}"),
    "foremost_named": ("foremost thing named", "{:.1%}"),
}
BY_SUITE = {"caption": "cider", "coverage": "foremost_named"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/tiny"), help="what `minigpt4 tiny` made there (default: %(default)s)")
    add("--out", type=Path, default=Path("output/tiny"), help="its runs; these go below them (default: %(default)s)")
    add("--qformer", type=Path, metavar="FILE", help="the Q-Former to start from (default: stage 0's of --out)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="some of " + ", ".join(ARMS))
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="runs of each arm (default: 1 2 3)")
    add("--options", nargs="+", default=[], metavar="a.b=c", help=f"override keys of {CONFIG}")


def run(args: argparse.Namespace) -> int:
    places = Places(args.data, args.out)
    if args.qformer is None and not (places.out / "stage0" / "finished").exists():
        raise UserError(f"{places.out / 'stage0'} is not finished: `minigpt4 tiny` trains it; or write --qformer")
    study = Study(places, args.qformer or places.checkpoint("stage0"), tuple(args.options))
    wanted = [(arm, seed) for seed in args.seeds for arm in args.arms]
    clock = Clock(study.folder / "steps.json", [run_name(*one) for one in wanted])
    for arm, seed in wanted:
        finished = (study.folder / run_name(arm, seed) / "figures.json").exists()
        title = f"{ARMS[arm].label}, seed {seed}" + (": finished before" if finished else "")
        with clock.step(run_name(arm, seed), title, finished, operator.add):
            if not finished:
                study.run(arm, seed)
    found = study.found()
    arms = summarize(found)
    names = [run_name(arm, seed) for arm in found for seed in found[arm]]
    seconds = {name: round(clock.seconds[name]) for name in names if name in clock.seconds}
    results = {"config": CONFIG, "options": args.options, "split": HELD_OUT, "seconds": seconds, "arms": arms}
    write_json(results, study.folder / "results.json")
    draw(arms, study.folder / "ablations.png")
    print(f"\n{table(arms)}\n\n{study.folder / 'results.json'}, {study.folder / 'ablations.png'}")
    print(f"These runs took {minutes(sum(seconds.values()))}.")
    return 0


def run_name(arm: str, seed: int) -> str:
    return f"{arm}-s{seed}"


class Study:
    """The runs of one folder.

    Args:
        places: where `minigpt4 tiny` has its things.
        qformer: the file that every arm starts from; without Q-Former, it brings ln_vision alone.
        more: overrides of the training config, the same for every run.
    Raises:
        UserError: there is no such file, or the folder's runs were made with another one or other overrides.
    """

    def __init__(self, places: Places, qformer: Path, more: tuple[str, ...] = ()):
        if not qformer.is_file():
            raise UserError(f"{qformer}: no such file; write another --qformer")
        self.places, self.qformer, self.more = places, qformer, more
        self.folder = places.out / "ablations"
        self.folder.mkdir(parents=True, exist_ok=True)
        config = digest(load_config(CONFIG, more, mode="show").plain())  # an edited YAML is another study
        made_with = {"Q-Former": sha256(qformer), "options": list(more), "config": config}
        keep_to(self.folder / "made_with.json", made_with)

    def options(self, arm: str, seed: int) -> list[str]:
        """What a training run overrides of CONFIG."""
        chosen = ARMS[arm]
        moved = self.places.options(f"ablations/{run_name(arm, seed)}")
        return [*moved, f"model.q_former_model={self.qformer}", f"run.seed={seed}", *chosen.model, *chosen.training,
                *self.more]  # fmt: skip

    def run(self, arm: str, seed: int) -> None:
        """Train, measure, and write figures.json; a run that was begun goes on."""
        folder, config = self.folder / run_name(arm, seed), load_config(CONFIG, self.options(arm, seed), mode="show")
        folder.mkdir(exist_ok=True)
        checkpoint = folder / f"checkpoint_{config.run.max_epoch - 1}.pth"
        if not checkpoint.exists():
            call("python train.py", "--cfg-path", CONFIG, "--options", *self.options(arm, seed))
        losses = [row["valid_loss"] for row in read_log(folder / "log.jsonl") if "valid_loss" in row]
        figures = {"valid_loss": losses[-1]}
        for suite, name in BY_SUITE.items():
            photos = ("--split", HELD_OUT, "--limit", LIMIT)
            model = (*chat_model(self.qformer, checkpoint), *ARMS[arm].model)
            results = self.places.evaluate(suite, photos, folder / "eval", model)
            figures[name] = results["scores"]["after"][name]["value"]
        write_json(figures, folder / "figures.json")

    def found(self) -> dict[str, dict[int, dict[str, float]]]:
        """arm -> seed -> figures, of all runs that are finished, those of earlier calls among them."""
        found: dict[str, dict[int, dict[str, float]]] = {}
        for arm in ARMS:
            for file in sorted(self.folder.glob(f"{arm}-s*/figures.json")):
                seed = int(file.parent.name.removeprefix(f"{arm}-s"))
                found.setdefault(arm, {})[seed] = json.loads(file.read_text(encoding="utf-8"))
        return found


def summarize(found: dict[str, dict[int, dict[str, float]]]) -> dict[str, dict]:
    """arm -> seed -> figures => arm -> {"label", "seeds", each figure: {"mean", "std", "runs"}}.

    The standard deviation is that of the runs (n - 1 below the root), None of a single one.
    """
    arms = {}
    for arm, by_seed in found.items():
        seeds = sorted(by_seed)
        arms[arm] = {"label": ARMS[arm].label, "seeds": seeds}
        for name in FIGURES:
            runs = [by_seed[seed][name] for seed in seeds]
            arms[arm][name] = {"mean": mean(runs), "std": stdev(runs) if len(runs) > 1 else None, "runs": runs}
    return arms


def table(arms: dict[str, dict]) -> str:
    """Markdown: mean ± standard deviation of each figure over the runs of an arm."""
    rows = [["stage 1 of the small model", *(label for label, _ in FIGURES.values()), "runs"]]
    rows.append(["---"] * len(rows[0]))
    for arm in arms.values():
        cells = []
        for name, (_, form) in FIGURES.items():
            known = [arm[name][key] for key in ("mean", "std") if arm[name][key] is not None]
            cells.append(" ± ".join(map(form.format, known)))
        rows.append([arm["label"], *cells, str(len(arm["seeds"]))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
