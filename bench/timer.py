"""One timer for all rows, the line that a row says, and the processes that rows run in."""

import contextlib
import importlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

Way = Callable[[], object]  # one way to do the work: timed as a whole, unless it returns the seconds (float) that count


class NotRun(Exception):
    """A row that this machine cannot run, and why."""


@dataclass
class Line:
    """A line of the table. Of a unit with `/s`, more is better; of any other, less."""

    what: str
    unit: str  # of `ours` and `peer`
    ours: float
    peer: float | None = None
    against: str = ""  # who the peer is
    target: str = ""  # for `ours` or `ratio`, e.g. "ratio >= 1.7"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer."""
        if self.peer is None:
            return None
        return self.ours / self.peer if "/s" in self.unit else self.peer / self.ours

    @property
    def reached(self) -> float | None:
        """The reached share of the target: 1.0 and above is met."""
        if not self.target:
            return None
        name, sign, wanted = self.target.split()
        found = getattr(self, name)
        return found / float(wanted) if sign == ">=" else float(wanted) / found

    def plain(self) -> dict:
        return asdict(self) | {"ratio": self.ratio, "reached": self.reached}


@dataclass(frozen=True)
class Setting:
    """How a row is measured."""

    threads: int = 1
    quick: bool = False  # tiny sizes, to see that the code works
    rounds: int = 3  # of `alternate`, at least
    seconds: float = 10  # that `alternate` goes on, at least

    def alternate(self, ways: dict[str, Way], warm: bool = False) -> dict[str, float]:
        """Call all ways in turn, once to get warm (unless they are), then again and again: the best seconds of each."""
        best, done = dict.fromkeys(ways, math.inf), 0
        for way in () if warm else ways.values():
            way()
        end = time.monotonic() + self.seconds
        while done < self.rounds or time.monotonic() < end:
            for name, way in ways.items():
                start = self.clock()
                own = way()
                best[name] = min(best[name], own if isinstance(own, float) else self.clock() - start)
            done += 1
        return best

    def clock(self) -> float:
        """CPU seconds of this process with one thread, seconds by the clock with more."""
        return time.process_time() if self.threads == 1 else time.perf_counter()

    @property
    def unit(self) -> str:
        return "s CPU" if self.threads == 1 else "s"


def set_up(setting: Setting) -> None:
    """What a new process does first."""
    import torch

    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    logging.getLogger("minigpt4").setLevel(logging.ERROR)


@contextlib.contextmanager
def processes(setting: Setting, count: int = 1):
    """A pool of new processes with `setting.threads` threads each. Quick ones are forks, which have the imports."""
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)  # before a spawned process imports torch
    context = get_context("fork" if setting.quick else "spawn")
    with ProcessPoolExecutor(count, context, initializer=set_up, initargs=(setting,)) as pool:
        yield pool


def in_a_process(setting: Setting, function: Callable, *arguments):
    """`function(setting, *arguments)` in a process of its own."""
    with processes(setting) as pool:
        return pool.submit(function, setting, *arguments).result()


def measure(setting: Setting, where: str) -> list[Line]:
    """Call the function of a row. It stands here, because a spawned process cannot load anything from __main__."""
    module, name = where.split(".")
    return getattr(importlib.import_module(f"bench.{module}"), name)(setting)


def peak_memory() -> float:
    """The most memory that this process had since its start, in GiB. ru_maxrss would count the process that started it,
    too."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise NotRun("read from Linux's /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20
