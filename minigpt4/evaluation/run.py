"""`minigpt4 eval --cfg-path X --suite NAME --data FILE`: score a model on pictures, with a table, JSON and a page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..common.config import load_config
from ..common.dist_utils import rank, world_size
from ..common.errors import ConfigError, DataError, some
from ..common.paths import write_whole
from . import page
from .answering import answer_all, chat_for, digest, made_from
from .data import read_records
from .judge import Judge
from .scoring import Tools
from .suites import SUITES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cfg-path", default="eval_configs/tiny_eval.yaml", help="config (default: %(default)s)")
    add("--suite", required=True, choices=SUITES, metavar="NAME", help=", ".join(SUITES))
    what = "annotation files, or a folder of pictures; docs/evaluation.md lists the formats"
    add("--data", required=True, nargs="+", metavar="FILE", help=what)
    add("--split", help="the split to take")
    add("--before", metavar="CHECKPOINT", help="a second model.ckpt: scored too, with the difference to it")
    add("--prompt", help="asked instead of the suite's own questions; {question} is the data's")
    add("--max-new-tokens", type=int, help="longest answer (default: the suite's)")
    add("--beams", type=int, default=1, help="beams (default: %(default)s)")
    add("--out", metavar="DIR", help="answers and results go there (default: output/eval/CONFIG)")
    add("--synonyms", metavar="FILE", help="CHAIR's published synonyms.txt instead of ours")
    add_shared_arguments(parser, "judges too (coverage, abilities)")


def add_shared_arguments(parser: argparse.ArgumentParser, judge: str) -> None:
    """What `minigpt4 curate` takes too; `judge` says what the judge does."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of the images, where the files do not say")
    add("--limit", type=int, metavar="N", help="so many pictures or questions, at random, always the same")
    add("--batch", type=int, default=16, help="pictures answered at once (default: %(default)s)")
    add("--sample", action="store_true", help="draw answers as the chat does, instead of greedily")
    add("--seed", type=int, default=42, help="of --sample (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add("--judge", metavar="URL", help=f"an OpenAI-compatible endpoint that {judge}")
    add("--judge-model", default="", help="its model name")
    add("--judge-key-env", default="OPENAI_API_KEY", help="variable with its key (default: %(default)s)")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")


def run(args: argparse.Namespace) -> int:
    """Answer, score, write. Under torchrun the first process scores what all have answered."""
    check_arguments(args)
    suite, started = SUITES[args.suite], time.monotonic()
    config = load_config(args.cfg_path, args.options, mode="chat")
    configs = {"after": config}
    if args.before:
        options = [*args.options, f"model.ckpt={args.before}"]
        configs = {"before": load_config(args.cfg_path, options, mode="chat"), **configs}
    items = suite.items(read_records(args.data, args.images, args.split, args.limit, suite.data), args.prompt)
    decoding = {"do_sample": args.sample, "num_beams": args.beams,
                "max_new_tokens": args.max_new_tokens or suite.max_new_tokens,
                "repetition_penalty": config.model.repetition_penalty,
                **({"seed": args.seed} if args.sample else {})}  # fmt: skip
    sources = {stage: made_from(config, decoding) for stage, config in configs.items()}
    out = Path(args.out or Path("output", "eval", Path(args.cfg_path).stem))
    # A folder for each config, checkpoint and data: the hash is of all that the report tells of.
    asked = [args.cfg_path, args.data, args.images, args.split, args.limit, args.prompt, bool(args.judge)]
    stems = [Path(name).stem for name in (config.model.ckpt or "", args.data[0]) if name]
    folder = out / args.suite / "-".join([*stems, digest([sources, asked])[:8]])
    folder.mkdir(parents=True, exist_ok=True)
    answers = {
        stage: answer_all(
            lambda c=c: chat_for(c, args.device), items, sources[stage], out / "answers", args.batch,
            f"{args.suite}{f', {stage}' if args.before else ''}: ",
        )
        for stage, c in configs.items()
    }  # fmt: skip
    if rank() != 0:
        return 0

    unreadable = {
        str(item.record.image): answer["unreadable"]
        for said in answers.values() for item, answer in zip(items, said, strict=True) if "unreadable" in answer
    }  # fmt: skip
    read = [i for i, item in enumerate(items) if str(item.record.image) not in unreadable]
    if not read:
        raise DataError(f"--data {' '.join(args.data)}: no picture can be read, e.g. {next(iter(unreadable.values()))}")
    judge = Judge(args.judge, args.judge_model, args.judge_key_env) if args.judge else None
    tools, good = Tools(judge, out / args.suite / "judged.jsonl", args.synonyms), [items[i] for i in read]
    scored = {stage: suite.score(good, [said[i] for i in read], tools) for stage, said in answers.items()}
    results = {
        "suite": args.suite, "config": args.cfg_path, "options": args.options, "checkpoint": config.model.ckpt,
        "before": args.before, "data": args.data, "split": args.split, "limit": args.limit,
        "decoding": decoding, "batch": args.batch,
        "questions": {variant: args.prompt or question for variant, question in suite.questions.items()},
        "judge": {"url": args.judge, "model": args.judge_model} if args.judge else None, "processes": world_size(),
        **page.results_of(good, scored), "unreadable": unreadable, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    if unreadable:
        total, why = len({item.record.image for item in items}), some(unreadable.values(), 2)
        results["notes"].append(f"{len(unreadable)} of {total} pictures cannot be read and are left out: {why}.")
    page.write_json(results, folder / "results.json")
    write_whole(folder / "report.html", page.html_page(results, suite.title))
    print(f"{page.table(results, suite.title)}\n\n{folder / 'results.json'}, {folder / 'report.html'}")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError for a value that no run can use."""
    if args.judge and not args.judge_model:
        raise ConfigError("--judge: name its model with --judge-model")
    if args.prompt is not None and not args.prompt.strip():
        raise ConfigError("--prompt: empty")
    for name in ("limit", "batch", "beams", "max_new_tokens"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} should be 1 or more")
