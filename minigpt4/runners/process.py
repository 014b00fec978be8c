"""A run and the process it lives in: one run to a folder, and an end in good order."""

import fcntl
import signal
from pathlib import Path
from typing import TextIO

from ..common.errors import UserError


def lock_folder(folder: Path, rank: int) -> TextIO:
    """One run at a time in a folder: a context manager that holds the lock. It goes with the process, however it ends.

    A POSIX lock: unlike flock's it is not inherited by loader workers, which outlive a killed run by some seconds.

    Raises:
        UserError: another process holds it, or the folder is read-only.
    """
    try:
        lock = (folder / f".lock_{rank}").open("w")
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written to: {error.strerror}") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"another run is writing into {folder}; write another run.output_dir") from None
    return lock


class StopSignals:
    """Within this context SIGTERM and the first Ctrl-C are only noted in `received`: the loop ends after its step."""

    def __init__(self):
        self.received = 0  # the signal's number

    def __enter__(self) -> "StopSignals":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _frame) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
