"""Commands of several steps: each is reused when it is finished, and the time of each is kept."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from minigpt4.common.errors import UserError
from minigpt4.common.paths import PROJECT


class StepError(UserError):
    """A step that did not end as it should."""


def run_to_end(command: list[str]) -> int:
    """Run a command in this terminal; Ctrl-C and SIGTERM reach it, and it gets the time to save its work. Raises
    KeyboardInterrupt after it has ended, when one of these came."""
    child = subprocess.Popen(command)
    told = []

    def pass_on(number, _frame):
        told.append(number)
        if number == signal.SIGTERM:  # Ctrl-C goes to the whole foreground group by itself
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told:
        raise KeyboardInterrupt(told[0])
    return code


def call(program: str, *arguments: str) -> None:
    """Print a command as a user would type it, and run it: program is `minigpt4` or `python train.py`. Raises StepError
    when it did not end well."""
    start = {"minigpt4": ["-m", "minigpt4.cli"], "python train.py": [str(PROJECT / "train.py")]}[program]
    print(f"$ {program} {shlex.join(arguments)}", flush=True)
    if code := run_to_end([sys.executable, *start, *arguments]):
        why = f"{program} {' '.join(arguments[:2])} did not finish (exit code {code}): the reason stands above"
        raise StepError(f"{why}. The same command goes on from there")


class Clock:
    """Headings with the time since the start, and the seconds of each step, kept in a file across calls."""

    def __init__(self, file: Path, steps: Sequence[str]):
        self.file, self.steps, self.started = file, steps, time.monotonic()
        try:
            self.state = json.loads(file.read_text())
        except (OSError, ValueError):
            self.state = {}
        self.seconds: dict[str, float] = self.state.setdefault("seconds", {})

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @contextlib.contextmanager
    def step(
        self, name: str, title: str, done: bool = False,
        seconds: Callable[[float, float], float] = lambda before, now: now,
    ) -> Iterator[None]:  # fmt: skip
        """Print the heading; count the time that the body takes, unless the step was `done` before.

        Args:
            seconds: what counts, of an earlier call's time and this one's: `operator.add` for training that goes on
                where it stopped, `max` for a step that sees for itself what is there already.
        """
        number = self.steps.index(name) + 1
        print(f"\n[{number}/{len(self.steps)}] {title} (elapsed {minutes(self.elapsed())})", flush=True)
        started = time.monotonic()
        try:
            yield
        finally:
            before = self.seconds.get(name, 0)
            self.seconds[name] = before if done and before else seconds(before, time.monotonic() - started)
            self.save()

    def save(self) -> None:
        self.file.write_text(json.dumps(self.state, indent=1) + "\n")


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
