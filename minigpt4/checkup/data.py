"""`minigpt4 data check ...`: read datasets whole, in parallel, with the processors that a run uses."""

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from .. import conversation, tasks  # noqa: F401  (fill the registries)
from ..common.config import load_config
from ..common.errors import DataError, UserError
from ..common.paths import REMOTE, expand_shards, missing_shards, resolve_path
from ..common.registry import TASKS
from ..datasets.faults import short
from ..datasets.image_text import ImageTextSource, read_filter_cap, read_photos
from ..datasets.shard_files import read_shard
from ..datasets.shards import ShardSource
from ..datasets.stream import Source
from ..processors.image_processors import Blip2ImageEval
from ..processors.text_processors import BlipCaption

CHUNK = 500  # images of a list that are one part
EXAMPLES = 3  # of each fault that are named
Part = tuple[str, str | range]  # dataset, and its shard or places in its list
_sources: dict[str, Source] = {}  # forked processes find them here


@dataclass
class Report:
    """What was found in one part, or in a dataset."""

    dataset: str
    shard: str | None  # or a stretch of a list; None: the whole dataset
    samples: int = 0
    faults: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # fault -> "SAMPLE: why"

    @property
    def bad(self) -> int:
        return self.faults.total()

    def add(self, where: str, fault: Exception) -> None:
        kind = type(fault).__name__
        self.faults[kind] += 1
        if self.faults[kind] <= EXAMPLES:
            self.examples.setdefault(kind, []).append(f"{where}: {short(str(fault))}")

    def join(self, other: "Report") -> None:
        self.samples += other.samples
        self.faults.update(other.faults)
        for kind, examples in other.examples.items():
            self.examples[kind] = [*self.examples.get(kind, []), *examples][:EXAMPLES]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=["check"], help="decode every sample and say which cannot be used")
    what = "shards (pattern, glob or URL), a folder with filter_cap.json, or a .jsonl of captioned photos"
    add("data", nargs="*", metavar="SHARDS", help=what)
    add("--cfg-path", help="check every dataset of this training config, with its own processors")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of the config")
    add("--images", help="folder of the images of a .jsonl (default: photos/ beside it)")
    add("--jobs", type=int, help="processes (default: one for each CPU)")
    add("--jsonl", metavar="FILE", help="also write a JSON line for each part and dataset")
    add("--max-bad-share", type=float, help="exit code 1 above this share (default: the config's, or 0.05)")


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 when a run would stop at these data."""
    if bool(args.data) == bool(args.cfg_path):
        raise UserError("data check: write either shards, folders and files to check, or --cfg-path X")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: {args.jobs} should be at least 1")
    if args.cfg_path:
        sources, share = sources_of_config(args.cfg_path, args.options)
    else:
        sources, share = sources_of_paths(args.data, args.images), 0.05
    share = share if args.max_bad_share is None else args.max_bad_share
    reports = check(sources, args.jobs)
    totals = {name: Report(name, None) for name in sources}
    for report in reports:
        totals[report.dataset].join(report)
        if report.bad:
            kinds = ", ".join(f"{count} {kind}" for kind, count in report.faults.most_common())
            print(f"{report.shard}: {report.bad} of {report.samples} samples bad: {kinds}")
    if args.jsonl:
        try:
            lines = [json.dumps({**vars(row), "bad": row.bad}) for row in [*reports, *totals.values()]]
            Path(args.jsonl).write_text("\n".join(lines) + "\n")
        except OSError as error:
            raise DataError(f"--jsonl {args.jsonl}: cannot be written: {error.strerror}") from None
    for total in totals.values():
        print(f"{total.dataset}: {total.samples:,} samples, {total.bad:,} bad")
        for kind, count in total.faults.most_common():
            print(f"  {kind}: {count:,}", *total.examples[kind], sep="\n    ")
    stopping = [total for total in totals.values() if total.bad == total.samples or total.bad > share * total.samples]
    for total in stopping:
        found = f"{total.bad} of {total.samples} samples are bad ({total.bad / max(total.samples, 1):.1%}"
        print(f"error: {total.dataset}: {found}; at most {share:.1%} may be)", file=sys.stderr)
    if not stopping:
        print(f"\nready for training (at most {share:.0%} may be bad)")
    return 1 if stopping else 0


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
    """Datasets by the paths a user wrote: shards are one dataset together. Raises DataError: nothing is there, or a
    list of images is wrong."""
    sources: dict[str, Source] = {}
    shards: list[str] = []
    processor = Blip2ImageEval()
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
            if gone := missing_shards(found):
                raise DataError(f"{path}: {len(gone)} of {len(found)} files are missing, the first {gone[0]}")
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


def check(sources: dict[str, Source], jobs: int | None = None) -> list[Report]:
    """Read everything -> a report of each part, in order. Raises UserError: a process was killed."""
    _sources.update(sources)
    parts = parts_of(sources)
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(parts))
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=_begin) as pool:
        try:
            found = pool.map(read_part, *zip(*parts, strict=True))
            return list(tqdm(found, total=len(parts), unit="part", disable=not sys.stderr.isatty()))
        except BrokenProcessPool:
            why = "one of its processes was killed, perhaps for lack of memory"
            raise UserError(f"data check: {why}; try --jobs 1") from None
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process ends the others
    torch.set_num_threads(1)


def read_part(dataset: str, part: str | range) -> Report:
    """Every sample of a shard, or of a stretch of a list, decoded."""
    source = _sources[dataset]
    if isinstance(part, str):
        report, samples = Report(dataset, part), read_shard(part, source.cache)
    else:
        report = Report(dataset, f"{source.pairs[part[0]][0].parent} {part[0]}-{part[-1]}")
        samples = ((str(source.pairs[i][0]), source.pairs[i]) for i in part)
    for where, raw in samples:
        report.samples += 1
        try:
            if isinstance(raw, Exception):
                raise raw
            source.decode(raw)
        except Exception as fault:  # as in training: whatever a decoder raises, the sample is at fault
            report.add(where, fault)
    return report
