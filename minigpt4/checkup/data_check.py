"""Reading a dataset whole, in parallel, with the processors a run would use."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm import tqdm

from ..common.errors import DataError, UserError
from ..common.paths import REMOTE, expand_shards, resolve_path
from ..datasets.faults import SampleFault
from ..datasets.image_text import ImageTextSource, read_filter_cap, read_photos
from ..datasets.shard_files import Command, read_shard
from ..datasets.shards import ShardSource
from ..datasets.stream import Source
from ..processors.image_processors import Blip2ImageEval
from ..processors.text_processors import BlipCaption
from .data_report import Report

CHUNK = 500  # images of a list that are one part
FATAL = ("MissingFile",)  # of a whole shard: the config that names it is refused
Part = tuple[str, str | range]  # dataset, and its shard or places in its list


# -- what to read -------------------------------------------------------------------------------------------------


def sources_of_config(path: str, options: list[str]) -> tuple[dict[str, Source], float]:
    """The datasets of a training config by name, and its run.max_bad_share.

    Raises:
        UserError: the config, or a list of images in it, is wrong.
    """
    from .. import conversation, runners, tasks  # noqa: F401  (fill the registries)
    from ..common.config import load_config
    from ..common.registry import TASKS

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
    """Work for one process each.

    Raises:
        UserError: a dataset of the user's own that has no end.
    """
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
    global _sources
    _sources = sources  # forked processes find them there
    parts = parts_of(sources)
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(parts))
    done: dict[int, Report] = {}
    bar = tqdm(total=len(parts), unit="part", dynamic_ncols=True, disable=not sys.stderr.isatty())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), initializer=_begin)
    try:
        futures = {pool.submit(read_part, *part): i for i, part in enumerate(parts)}
        for future in as_completed(futures):
            done[futures[future]] = report = future.result()
            bar.update()
            bar.set_postfix_str(f"{sum(r.bad for r in done.values())} bad")
            if report.seconds > 60:
                bar.write(f"{report.shard}: took {report.seconds:.0f} s", file=sys.stderr)
        finished = True
    except KeyboardInterrupt:
        finished = False
        _end(pool)
    except BrokenProcessPool:
        raise UserError(
            "data check: one of its processes was killed, perhaps for lack of memory; try --jobs 1"
        ) from None
    except BaseException:
        _end(pool)
        raise
    finally:
        bar.close()
        pool.shutdown(wait=False, cancel_futures=True)
    return [done[i] for i in sorted(done)], finished


_sources: dict[str, Source] = {}


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process ends the others
    signal.signal(signal.SIGTERM, _leave)
    torch.set_num_threads(1)


def _leave(*_) -> None:
    for command in list(Command.running):  # they have sessions of their own, so they would go on
        command.close()
    os._exit(143)  # the pool would catch an exception


def _end(pool: ProcessPoolExecutor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.terminate()


def read_part(dataset: str, part: str | range) -> Report:
    """Every sample of a shard, or of a stretch of a list, decoded."""
    source = _sources[dataset]
    report = Report(dataset, part if isinstance(part, str) else _stretch(source, part))
    started, keys = time.monotonic(), set()
    for where, raw in _raw_samples(source, part):
        if isinstance(raw, dict):
            report.repeated += raw["__key__"] in keys
            keys.add(raw["__key__"])
        try:
            if isinstance(raw, Exception):
                raise raw
            with _measured(source, report):
                source.decode(raw)
            report.samples += 1
        except Exception as fault:  # as in training: whatever a decoder raises, the sample is at fault
            report.note(fault, where)
            report.missing += isinstance(part, str) and where == part and type(fault).__name__ in FATAL
    report.seconds = time.monotonic() - started
    return report


def _stretch(source: ImageTextSource, part: range) -> str:
    return f"{source.pairs[part[0]][0].parent} {part[0]}-{part[-1]}"


def _raw_samples(source: Source, part: str | range) -> Iterator[tuple[str, dict | tuple | SampleFault]]:
    if isinstance(part, str):
        yield from read_shard(part, source.cache)
    else:
        yield from ((str(source.pairs[i][0]), source.pairs[i]) for i in part)


class _measured:
    """Within this context a source's processors note the sizes of what they get."""

    def __init__(self, source, report: Report):
        self.source, self.report = source, report

    def __enter__(self) -> None:
        self.before = self.source.vis_processor, self.source.text_processor
        see, read = self.before

        def seeing(image):
            self.report.width.add(image.width)
            self.report.height.add(image.height)
            return see(image)

        def reading(caption: str):
            self.report.words.add(len(caption.split()))
            return read(caption)

        self.source.vis_processor, self.source.text_processor = seeing, reading

    def __exit__(self, *_) -> None:
        self.source.vis_processor, self.source.text_processor = self.before
