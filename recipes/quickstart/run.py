"""`minigpt4 quickstart`: weights, data, stage 1, stage 2, the same question after each stage, a report.

Everything goes into one folder, and each step that is finished there is reused by a later call.
"""

import argparse
import dataclasses
import hashlib
import json
import operator
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import load_config
from minigpt4.common.errors import UserError
from minigpt4.common.paths import resolve_path, sha256
from minigpt4.common.schema import Config
from minigpt4.conversation.prompts import DEFAULT_QUESTION
from minigpt4.evaluation.page import table, write_json
from minigpt4.weights.small import fetch_all
from recipes.steps import Clock, call, minutes

from . import report, scores
from .sample_set import PARAMETERS, make_sample_set

DATA = Path("data/sample_set")  # where the training configs look for it
STEPS = ("weights", "data", "stage1", "stage2", "answers", "report")


@dataclass(frozen=True)
class Plan:
    """What a quickstart runs. The command sets the first four fields; tests make a small one of the others."""

    out: Path
    data: Path = DATA
    heldout: int | None = None  # ask about so many held-out pictures (None: all)
    options: list[str] = field(default_factory=list)  # a.b=c, for both stages and the answers
    stage1: str = "train_configs/tiny_stage1_pretrain.yaml"
    stage2: str = "train_configs/tiny_stage2_finetune.yaml"
    chat: str = "eval_configs/tiny_eval.yaml"
    get_weights: Callable[[], object] = lambda: fetch_all(Path("weights"))
    make_data: Callable[[Path], object] = lambda folder: make_sample_set(folder, **counts_in(folder))
    max_new_tokens: int = 96
    batch_size: int = 16


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

    Returns:
        what `results.json` holds: scores and answers as `minigpt4 eval` writes them, seconds of each step.
    Raises:
        UserError: a step failed; its message says which. The same call goes on from there.
    """
    configs = {stage: load_config(getattr(plan, stage), plan.options, mode="show") for stage in scores.STAGES}
    checkpoints = {s: plan.out / s / f"checkpoint_{config.run.max_epoch - 1}.pth" for s, config in configs.items()}
    first, second = checkpoints.values()
    plan.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(plan.out / "steps.json", STEPS)

    with clock.step("weights", "Weights: a small vision encoder and a small language model, both frozen", seconds=max):
        plan.get_weights()
    with clock.step("data", "Sample set: composed pictures and their captions", seconds=max):
        plan.make_data(plan.data)

    set_aside_if_outdated(plan.out / "stage1", clock, fingerprint(plan, configs["stage1"]))
    with clock.step("stage1", "Stage 1: the projection learns from short captions", first.exists(), operator.add):
        train(plan, "stage1", configs["stage1"], first)
    set_aside_if_outdated(plan.out / "stage2", clock, fingerprint(plan, configs["stage2"], first))
    heading = "Stage 2: it goes on, on detailed descriptions in a conversation"
    with clock.step("stage2", heading, second.exists(), operator.add):
        train(plan, "stage2", configs["stage2"], second, f"model.ckpt={first}")

    heldout = scores.read_heldout(plan.data)
    count = min(plan.heldout or len(heldout), len(heldout))
    title = f"Answers: {DEFAULT_QUESTION!r}, asked of {count} held-out pictures after each stage"
    with clock.step("answers", title, seconds=operator.add):
        results = scores.evaluate(
            plan.chat, plan.options, checkpoints, heldout, plan.heldout, plan.out / "answers", plan.max_new_tokens,
            plan.batch_size,
        )  # fmt: skip
    with clock.step("report", "Report"):
        results |= {"seconds": dict(clock.seconds), "trained": count_trained(second)}
        write_json(results, plan.out / "results.json")
        report.write(results, plan.out)
    print_farewell(plan, results, second, clock)
    return results


# -- the steps ----------------------------------------------------------------------------------------------------


def counts_in(folder: Path) -> dict[str, int]:
    """The seed and counts of a sample set, so that one made by `minigpt4 sample-set --stage1 N` keeps them."""
    try:
        found = json.loads((folder / PARAMETERS).read_text(encoding="utf-8"))
        return {name: found[name] for name in ("seed", "stage1", "stage2", "heldout")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def train(plan: Plan, stage: str, config: Config, checkpoint: Path, *options: str) -> None:
    """Run `train.py`, by the command that a user would type. It goes on from where an earlier run stopped."""
    if checkpoint.exists():  # the last one of the run
        print(f"already trained: {checkpoint} (to train again, delete {checkpoint.parent})", flush=True)
        return
    places = {"laion": "stage1/laion/*.tar", "cc_sbu": "stage1/cc_sbu/*.tar", "cc_sbu_align": "stage2"}
    places = {name: plan.data / place for name, place in places.items() if name in config.datasets}
    moved = [f"datasets.{name}.build_info.storage={place}" for name, place in places.items()]
    options = (f"run.output_dir={plan.out / stage}", *options, *(moved if plan.data != DATA else []), *plan.options)
    call("python train.py", "--cfg-path", getattr(plan, stage), "--options", *options)
    if not checkpoint.exists():
        raise UserError(f"{stage} did not finish (no {checkpoint}): the reason stands above")


def fingerprint(plan: Plan, config: Config, *files: Path) -> str:
    """Changes when the outcome of a stage would: with its config, the data, the Q-Former, and `files`."""
    settings = {name: dataclasses.asdict(config)[name] for name in ("model", "datasets", "run")}
    files += (plan.data / PARAMETERS, Path(resolve_path(config.model.q_former_model or "")))
    digests = [sha256(file) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps([settings, digests], sort_keys=True).encode()).hexdigest()


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


def count_trained(checkpoint: Path) -> int:
    """How many weights a checkpoint holds."""
    return sum(tensor.numel() for tensor in read_state(checkpoint).values())


def print_farewell(plan: Plan, results: dict, checkpoint: Path, clock: Clock) -> None:
    print(
        f"{table(results, 'Quickstart')}\n\n"
        f"Done in {minutes(clock.elapsed())}. The report:\n"
        f"  {plan.out / 'report.html'}  (open it in a browser)\n"
        f"  {plan.out / 'report.png'}   (the same as one picture)\n"
        "What to try next:\n"
        "  make demo                          a chat about your own picture, in the browser\n"
        "  minigpt4 describe YOUR.jpg         the same without a browser\n"
        f"  minigpt4 describe YOUR.jpg --options model.ckpt={checkpoint}\n"
        "                                     with the projection that was trained just now",
        flush=True,
    )
