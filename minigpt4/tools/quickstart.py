"""`minigpt4 quickstart`: weights, data, stage 1, stage 2, the same question before and after, a report.

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

from ..common.config import load_config
from ..common.errors import UserError
from ..common.paths import resolve_path, sha256
from ..common.schema import Config
from ..conversation.prompts import DEFAULT_QUESTION
from . import answers, report
from .report_text import HEADLINE
from .scores import vocabulary_of
from .steps import Clock, call, minutes

DATA = Path("data/sample_set")  # where the training configs look for it
STEPS = ("weights", "data", "stage1", "stage2", "answers", "report")


class QuickstartError(UserError):
    """A step that did not end as it should."""


@dataclass(frozen=True)
class Plan:
    """What a quickstart runs. The command fills in the first fields from its flags; tests make a small one."""

    out: Path
    data: Path = DATA
    heldout: int | None = None  # how many held-out pictures to ask about; None: all
    options: list[str] = field(default_factory=list)  # a.b=c, for both stages and the answers
    stage1: str = "train_configs/tiny_stage1_pretrain.yaml"
    stage2: str = "train_configs/tiny_stage2_finetune.yaml"
    chat: str = "eval_configs/tiny_eval.yaml"
    get_weights: Callable[[], object] | None = None  # None: `minigpt4 weights`
    make_data: Callable[[Path], object] | None = None  # None: `minigpt4 sample-set`
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
        raise QuickstartError(f"--heldout {args.heldout}: write how many pictures to ask about, 1 or more")
    quickstart(Plan(out=args.out, data=args.data, heldout=args.heldout, options=args.options))
    return 0


def quickstart(plan: Plan) -> dict:
    """Run every step that is not finished in `plan.out`.

    Returns:
        what `results.json` holds: scores, answers, loss curves, seconds of each step.
    Raises:
        UserError: a step failed; its message says which. The same call goes on from there.
    """
    configs = {stage: load_config(getattr(plan, stage), plan.options, mode="show") for stage in ("stage1", "stage2")}
    plan.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(plan.out / "steps.json", STEPS)
    with clock.step("weights", "Weights: a small vision encoder and a small language model, both frozen", seconds=max):
        (plan.get_weights or _get_weights)()
    with clock.step("data", "Sample set: composed pictures and their captions", seconds=max):
        (plan.make_data or _make_data)(plan.data)

    first, second = (plan.out / stage / f"checkpoint_{configs[stage].run.max_epoch - 1}.pth" for stage in configs)
    _set_aside_if_outdated(plan.out / "stage1", clock, _fingerprint(plan, configs["stage1"]))
    with clock.step("stage1", "Stage 1: the projection learns from short captions", first.exists(), operator.add):
        _train(plan, "stage1", configs["stage1"], first)
    _set_aside_if_outdated(plan.out / "stage2", clock, _fingerprint(plan, configs["stage2"], first))
    heading = "Stage 2: it goes on, on detailed descriptions in a conversation"
    with clock.step("stage2", heading, second.exists(), operator.add):
        _train(plan, "stage2", configs["stage2"], second, f"model.ckpt={first}")

    heldout = answers.read_heldout(plan.data)
    pictures = heldout[: plan.heldout]
    title = f"Answers: {DEFAULT_QUESTION!r}, asked of {len(pictures)} held-out pictures after each stage"
    checkpoints = {"stage1": first, "stage2": second}
    settings = {"chat": plan.chat, "options": list(plan.options), "max_new_tokens": plan.max_new_tokens}
    source = answers.made_from(plan.data, pictures, checkpoints, **settings)
    said = answers.known(plan.out / "results.json", source)
    with clock.step("answers", title, done=said is not None):
        if said is None:
            files = [plan.data / "heldout" / picture["image"] for picture in pictures]
            said = answers.ask(plan.chat, plan.options, checkpoints, files, plan.max_new_tokens, plan.batch_size)
        else:
            print("already asked of these very checkpoints: reusing the answers", flush=True)
    with clock.step("report", "Report"):
        results = answers.evaluate(pictures, said, vocabulary_of(heldout))
        results |= {"made_from": source, "seconds": dict(clock.seconds), "trained": count_trained(second)}
        results["losses"] = {stage: read_losses(plan.out / stage / "log.jsonl") for stage in checkpoints}
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        (plan.out / "results.json").write_text(text, encoding="utf-8")
        report.write(results, plan.data / "heldout", plan.out)
    _farewell(plan, results, second, clock)
    return results


# -- the steps ----------------------------------------------------------------------------------------------------


def _get_weights() -> None:
    from ..weights.small import fetch_all

    fetch_all(Path("weights"))


def _make_data(folder: Path) -> None:
    """The sample set; one that was made there with counts of its own (`minigpt4 sample-set --stage1 N`) keeps them."""
    from .sample_set import PARAMETERS, make_sample_set

    try:
        found = json.loads((folder / PARAMETERS).read_text(encoding="utf-8"))
        counts = {name: found[name] for name in ("seed", "stage1", "stage2", "heldout")}
    except (OSError, ValueError, KeyError, TypeError):
        counts = {}
    make_sample_set(folder, **counts)


def _train(plan: Plan, stage: str, config: Config, checkpoint: Path, *options: str) -> None:
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
        raise QuickstartError(f"{stage} did not finish (no {checkpoint}): the reason stands above")


def _fingerprint(plan: Plan, config: Config, *files: Path) -> str:
    """Changes when the outcome of a stage would: with its config, the data, the Q-Former, and `files`."""
    settings = {name: dataclasses.asdict(config)[name] for name in ("model", "datasets", "run")}
    files += (plan.data / "sample_set.json", Path(resolve_path(config.model.q_former_model or "")))
    digests = [sha256(file) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps([settings, digests], sort_keys=True).encode()).hexdigest()


def _set_aside_if_outdated(folder: Path, clock: Clock, fingerprint: str) -> None:
    """Keep a stage that was begun on something else than now from being taken for this one: it begins anew."""
    begun_on = clock.state.setdefault("fingerprints", {})
    if begun_on.get(folder.name, fingerprint) != fingerprint and folder.exists():
        before = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        clock.seconds.pop(folder.name, None)
        reason = "its config, its data or the stage before it changed"
        print(f"{folder.name}: {reason}, so it begins anew; what was there is in {before}", flush=True)
    begun_on[folder.name] = fingerprint
    clock.save()


def read_losses(log: Path) -> dict[str, list[float]]:
    """log.jsonl -> {"step": [...], "loss": [...]}"""
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    return {"step": [row["step"] for row in rows], "loss": [row["loss"] for row in rows]}


def count_trained(checkpoint: Path) -> int:
    """How many weights a checkpoint holds."""
    from ..common.checkpoint import read_state

    return sum(tensor.numel() for tensor in read_state(checkpoint).values())


def _farewell(plan: Plan, results: dict, checkpoint: Path, clock: Clock) -> None:
    for name in HEADLINE:
        before, after = (results["scores"][stage][name]["value"] for stage in ("stage1", "stage2"))
        print(f"  {results['measures'][name]['label']}: {before:.0%} after stage 1, {after:.0%} after stage 2")
    print(
        f"\nDone in {minutes(clock.elapsed())}. The report:\n"
        f"  {plan.out / 'report.html'}  (open it in a browser)\n"
        f"  {plan.out / 'report.png'}   (the same as one picture)\n"
        "What to try next:\n"
        "  make demo                          a chat about your own picture, in the browser\n"
        "  minigpt4 describe YOUR.jpg         the same without a browser\n"
        f"  minigpt4 describe YOUR.jpg --options model.ckpt={checkpoint}\n"
        "                                     with the projection that was trained just now",
        flush=True,
    )
