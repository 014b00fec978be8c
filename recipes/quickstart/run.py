"""`minigpt4 quickstart`: weights, data, warm start, stage 1, stage 2, the same question after each, a report.

Everything goes into one folder, and each step that is finished there is reused by a later call.
"""

import argparse
import json
import operator
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minigpt4 import cli
from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import load_config
from minigpt4.common.errors import UserError
from minigpt4.common.logger import read_log
from minigpt4.common.paths import resolve_path, sha256
from minigpt4.common.schema import Config
from minigpt4.conversation.prompts import DEFAULT_QUESTION
from minigpt4.evaluation.answering import digest
from minigpt4.evaluation.page import write_json
from minigpt4.weights.small import fetch_all
from recipes.steps import Clock, call, minutes

from . import report, scores
from .sample_set import PARAMETERS, make_sample_set

DATA = Path("data/sample_set")  # where the training configs look for it
STEPS = ("weights", "data", "features", "warm_start", "stage1", "stage2", "answers", "report")
TITLES = {
    "warm_start": "Warm start: the projection learns the words of the captions",
    "stage1": "Stage 1: through the frozen language model, on short captions",
    "stage2": "Stage 2: it goes on, on detailed descriptions in a conversation",
}


@dataclass(frozen=True)
class Plan:
    """What a quickstart runs. The command sets the first four fields; tests make a small one of the others."""

    out: Path
    data: Path = DATA
    heldout: int | None = None  # ask about so many held-out pictures (None: all)
    options: list[str] = field(default_factory=list)  # a.b=c, for every step
    stage1: str = "train_configs/quickstart_stage1.yaml"
    stage2: str = "train_configs/quickstart_stage2.yaml"
    chat: str = "eval_configs/tiny_eval.yaml"
    get_weights: Callable[[], object] = lambda: fetch_all(Path("weights"))
    make_data: Callable[[Path], object] = lambda folder: make_sample_set(folder, **counts_in(folder))
    max_new_tokens: int = 72
    batch_size: int = 64

    def settings(self, stage: str) -> list[str]:
        """The command-line options for a stage's config, which is also that of its data."""
        info, part = "datasets.captioned_photos.build_info", self.data / stage
        moved = [f"{info}.storage={part / 'photos.jsonl'}", f"{info}.features={part / 'features.npy'}"]
        return [f"run.output_dir={self.out / stage}", *(moved if self.data != DATA else []), *self.options]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("output/quickstart"), help="everything goes here (default: %(default)s)")
    add("--data", type=Path, default=DATA, help="the sample set, made when missing (default: %(default)s)")
    add("--heldout", type=int, metavar="N", help="ask about N held-out pictures only (default: all)")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the configs, in every step")


def run(args: argparse.Namespace) -> int:
    if args.heldout is not None and args.heldout < 1:
        raise UserError(f"--heldout {args.heldout}: write how many pictures to ask about, 1 or more")
    quickstart(Plan(out=args.out, data=args.data, heldout=args.heldout, options=args.options))
    return 0


def quickstart(plan: Plan) -> dict:
    """Run every step that is not finished in `plan.out`.

    Returns what `results.json` holds: scores and answers as `minigpt4 eval` writes them, losses, seconds of each step.
    Raises UserError when a step failed; its message says which. The same call goes on from there.
    """
    trained = {stage: load_config(getattr(plan, stage), plan.options, mode="show") for stage in ("stage1", "stage2")}
    configs = {"warm_start": trained["stage1"], **trained}
    last = {stage: f"checkpoint_{config.run.max_epoch - 1}.pth" for stage, config in trained.items()}
    checkpoints = {s: plan.out / s / name for s, name in {"warm_start": "checkpoint_0.pth", **last}.items()}
    plan.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(plan.out / "steps.json", STEPS)

    with clock.step("weights", "Weights: a small vision encoder and a small language model, both frozen", seconds=max):
        plan.get_weights()
    with clock.step("data", "Sample set: composed pictures and their captions", seconds=max):
        plan.make_data(plan.data)
    with clock.step("features", "Features: the frozen vision encoder sees each picture once", seconds=max):
        for stage in trained:
            verb("features", "--cfg-path", getattr(plan, stage), "--crops", "1", "--options", *plan.settings(stage))

    before: list[Path] = []
    for stage, checkpoint in checkpoints.items():
        set_aside_if_outdated(plan.out / stage, clock, fingerprint(plan, configs[stage], *before))
        with clock.step(stage, TITLES[stage], checkpoint.exists(), operator.add):
            train(plan, stage, checkpoint, *before)
        before = [checkpoint]

    heldout = scores.read_heldout(plan.data)
    count = min(plan.heldout or len(heldout), len(heldout))
    title = f"Answers: {DEFAULT_QUESTION!r}, asked of {count} held-out pictures after each of the three"
    with clock.step("answers", title, seconds=operator.add):
        results = scores.evaluate(
            plan.chat, plan.options, checkpoints, heldout, plan.heldout, plan.out / "answers", plan.max_new_tokens,
            plan.batch_size,
        )  # fmt: skip
    with clock.step("report", "Report"):
        logs = {stage: read_log(plan.out / stage / "log.jsonl") for stage in checkpoints}
        results |= {
            "seconds": dict(clock.seconds),
            "trained": sum(tensor.numel() for tensor in read_state(checkpoint).values()),
            "samples": counts_in(plan.data),
            "losses": {stage: [row["loss"] for row in rows if "loss" in row] for stage, rows in logs.items()},
            "tokens_per_second": {
                stage: sorted(rates)[len(rates) // 2]
                for stage, rows in logs.items()
                if (rates := [row["tokens_per_second"] for row in rows if "tokens_per_second" in row])
            },
        }
        write_json(results, plan.out / "results.json")
        report.write(results, plan.out)
    print(
        f"{report.summary(results)}\n\n"
        f"Done in {minutes(clock.elapsed())}. The report, to open in a browser:\n"
        f"  {plan.out / 'report.html'}\n"
        "What to try next:\n"
        "  make demo                          a chat with the small model that ships, about your own picture\n"
        f"  make demo CKPT={checkpoint}\n"
        "                                     the same with the projection that was trained just now",
        flush=True,
    )
    return results


def counts_in(folder: Path) -> dict[str, int]:
    """The seed and counts of a sample set, so that one made by `minigpt4 sample-set --stage1 N` keeps them."""
    try:
        found = json.loads((folder / PARAMETERS).read_text(encoding="utf-8"))
        return {name: found[name] for name in ("seed", "stage1", "stage2", "heldout")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def verb(*arguments: str) -> None:
    """Print a `minigpt4` command as a user would type it, and run it in this process: PyTorch is loaded already."""
    print(f"$ minigpt4 {shlex.join(arguments)}", flush=True)
    args = cli.build_parser([*arguments]).parse_args(arguments)
    args.run(args)


def train(plan: Plan, stage: str, checkpoint: Path, *before: Path) -> None:
    """Run the warm start, or `train.py`, which goes on from where an earlier run stopped, as a user would. `checkpoint`
    is the last one of the stage, `before` the one that it begins with."""
    if checkpoint.exists():
        print(f"already trained: {checkpoint} (to train again, delete {checkpoint.parent})", flush=True)
    elif stage == "warm_start":
        pictures = counts_in(plan.data).get("stage1", 0) or sum(1 for _ in (plan.data / "stage1/photos").iterdir())
        options = ("--samples", str(pictures), "--out", str(checkpoint.parent), "--options", *plan.settings("stage1"))
        verb("warm-start", "--cfg-path", plan.stage1, *options)
    else:
        options = (f"model.ckpt={before[0]}", *plan.settings(stage))
        call("python train.py", "--cfg-path", getattr(plan, stage), "--options", *options)
    if not checkpoint.exists():
        raise UserError(f"{stage} did not finish (no {checkpoint}): the reason stands above")


def fingerprint(plan: Plan, config: Config, *files: Path) -> str:
    """Changes when the outcome of a stage would: with its config, the data, the frozen vision side, and `files`."""
    frozen = (config.model.q_former_model, config.model.vit_ckpt)
    files += (plan.data / PARAMETERS, *(Path(resolve_path(file)) for file in frozen if file))
    digests = [sha256(file) for file in files if file.is_file()]
    return digest([config.plain(), digests])


def set_aside_if_outdated(folder: Path, clock: Clock, now: str) -> None:
    """Rename a stage's folder when its run was begun with another fingerprint than `now`, so that it begins anew."""
    begun_with = clock.state.setdefault("fingerprints", {})
    if begun_with.get(folder.name, now) != now and folder.exists():
        before = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        for step in (folder.name, "answers"):
            clock.seconds.pop(step, None)
        reason = "its config, its data or the stage before it changed"
        print(f"{folder.name}: {reason}, so it begins anew; what was there is in {before}", flush=True)
    begun_with[folder.name] = now
    clock.save()
