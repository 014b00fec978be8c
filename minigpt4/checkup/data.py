"""`minigpt4 data check ...`: read datasets whole, in parallel, with the processors that a run uses."""

import argparse
import copy
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm import tqdm

from .. import conversation, runners, tasks  # noqa: F401  (fill the registries)
from ..common.config import load_config
from ..common.errors import DataError, UserError
from ..common.paths import REMOTE, expand_shards, resolve_path
from ..common.registry import TASKS
from ..datasets.faults import MissingFile
from ..datasets.image_text import ImageTextSource, read_filter_cap, read_photos
from ..datasets.shard_files import Command, read_shard
from ..datasets.shards import ShardSource
from ..datasets.stream import Source
from ..processors.image_processors import Blip2ImageEval
from ..processors.text_processors import BlipCaption
from .data_report import Report, by_dataset, tell

CHUNK = 500  # images of a list that are one part
Part = tuple[str, str | range]  # dataset, and its shard or places in its list
_sources: dict[str, Source] = {}  # forked processes find them here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="decode every sample and say which cannot be used")
    check.add_argument(
        "data", nargs="*", metavar="SHARDS",
        help="shards (pattern, glob or URL), a folder with filter_cap.json, or a .jsonl of captioned photos",
    )  # fmt: skip
    check.add_argument("--cfg-path", help="check every dataset of this training config, with its own processors")
    check.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    check.add_argument("--images", help="folder of the images of a .jsonl (default: photos/ beside it)")
    check.add_argument("--jobs", type=int, help="processes (default: one for each CPU)")
    check.add_argument("--jsonl", metavar="FILE", help="also write a JSON line for each part and dataset")
    check.add_argument(
        "--max-bad-share", type=float, help="exit code 1 above this share (default: the config's, or 0.05)"
    )


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 when a run would stop at these data, 130 after Ctrl-C."""
    if bool(args.data) == bool(args.cfg_path):
        raise UserError("data check: write either shards, folders and files to check, or --cfg-path X")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: {args.jobs} should be at least 1")
    if args.cfg_path:
        sources, share = sources_of_config(args.cfg_path, args.options)
    else:
        sources, share = sources_of_paths(args.data, args.images), 0.05
    share = share if args.max_bad_share is None else args.max_bad_share
    reports, finished = check(sources, args.jobs)
    totals = by_dataset(reports)
    if args.jsonl:
        try:
            lines = [json.dumps(row.as_dict()) for row in [*reports, *totals]]
            Path(args.jsonl).write_text("\n".join(lines) + "\n")
        except OSError as error:
            raise DataError(f"--jsonl {args.jsonl}: cannot be written: {error.strerror}") from None
    print("\n".join(tell(reports, totals)))
    if not finished:
        print("\nstopped by the user: what is said above is of the parts that were read whole", file=sys.stderr)
        return 130
    reasons = [reason for total in totals for reason in total.reasons(share)]
    for reason in reasons:
        print(f"error: {reason}", file=sys.stderr)
    if not reasons:
        print(f"\nready for training (at most {share:.0%} may be bad)")
    return 1 if reasons else 0


# -- what to read -------------------------------------------------------------------------------------------------


def sources_of_config(path: str, options: list[str]) -> tuple[dict[str, Source], float]:
    """The datasets of a training config by name, and its run.max_bad_share."""
    config = load_config(path, options, mode="show")
    if not config.datasets:
        raise UserError(f"{path}: datasets: nothing to check")
    task = TASKS.get(config.run.task)(config)
    held_out = {f"{name} (validation)": source for name, source in task.valid_sources.items()}
    return {**task.sources, **held_out}, config.run.max_bad_share


def sources_of_paths(paths: list[str], images: str | None = None) -> dict[str, Source]:
    """Datasets by the paths a user wrote: shards are one dataset together.

    Raises:
        DataError: nothing is there, or a list of images is wrong.
    """
    sources: dict[str, Source] = {}
    shards, processor = [], Blip2ImageEval()
    for path in paths:
        place = Path(resolve_path(path))
        if path.endswith(".jsonl"):
            sources[path] = ImageTextSource(read_photos(str(place), images), processor, str.strip)
        elif not path.startswith(REMOTE) and place.is_dir():
            sources[path] = ImageTextSource(read_filter_cap(str(place)), processor, str.strip)
        else:
            try:
                found = expand_shards(path)
            except ValueError as error:
                raise DataError(f"{path}: not a pattern like {{00000..01255}}.tar: {error}") from None
            if not found:
                raise DataError(f"{path}: no such file or folder")
            shards += found
    if shards:
        sources["shards"] = ShardSource(shards, processor, BlipCaption())
    return sources


def parts_of(sources: dict[str, Source]) -> list[Part]:
    """Work for one process each. Raises UserError for a dataset of the user's own that has no end."""
    parts: list[Part] = []
    for name, source in sources.items():
        if isinstance(source, ShardSource):
            parts += [(name, url) for url in dict.fromkeys(source.urls)]
        elif isinstance(source, ImageTextSource):
            places = range(len(source))
            parts += [(name, places[i : i + CHUNK]) for i in places[::CHUNK]]
        else:
            raise UserError(f"{name}: {type(source).__name__} is neither shards nor a list of images: it has no end")
    return parts


# -- reading it ---------------------------------------------------------------------------------------------------


def check(sources: dict[str, Source], jobs: int | None = None) -> tuple[list[Report], bool]:
    """Read everything -> (a report of each part, in order; whether all were read: False after Ctrl-C).

    Raises:
        UserError: a process was killed, e.g. for lack of memory.
    """
    _sources.update(sources)
    parts = parts_of(sources)
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(parts))
    done: dict[int, Report] = {}
    bar = tqdm(total=len(parts), unit="part", dynamic_ncols=True, disable=not sys.stderr.isatty())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=_begin)
    try:
        futures = {pool.submit(read_part, *part): i for i, part in enumerate(parts)}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            bar.update()
            bar.set_postfix_str(f"{sum(r.bad for r in done.values())} bad")
    except KeyboardInterrupt:
        pass
    except BrokenProcessPool:
        raise UserError(
            "data check: one of its processes was killed, perhaps for lack of memory; try --jobs 1"
        ) from None
    finally:
        bar.close()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children() if len(done) < len(parts) else ():
            child.terminate()
    return [done[i] for i in sorted(done)], len(done) == len(parts)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process ends the others
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)


def _leave(*_) -> None:
    for command in list(Command.running):  # they have sessions of their own, so they would go on
        command.close()
    os._exit(143)  # the pool would catch an exception


def read_part(dataset: str, part: str | range) -> Report:
    """Every sample of a shard, or of a stretch of a list, decoded."""
    source = copy.copy(_sources[dataset])
    if isinstance(part, str):
        report, samples = Report(dataset, part), read_shard(part, source.cache)
    else:
        report = Report(dataset, f"{source.pairs[part[0]][0].parent} {part[0]}-{part[-1]}")
        samples = ((str(source.pairs[i][0]), source.pairs[i]) for i in part)
    see, read = source.vis_processor, source.text_processor

    def seeing(image):
        report.width[image.width] += 1
        report.height[image.height] += 1
        return see(image)

    def reading(caption: str):
        report.words[len(caption.split())] += 1
        return read(caption)

    source.vis_processor, source.text_processor = seeing, reading
    started, keys = time.monotonic(), set()
    for where, raw in samples:
        if isinstance(raw, dict):
            report.repeated += raw["__key__"] in keys
            keys.add(raw["__key__"])
        report.samples += 1
        try:
            if isinstance(raw, Exception):
                raise raw
            source.decode(raw)
        except Exception as fault:  # as in training: whatever a decoder raises, the sample is at fault
            report.note(fault, where)
            report.missing += where == part and isinstance(fault, MissingFile)
    report.seconds = time.monotonic() - started
    return report
