"""A run and its process: one run to a folder, signals, and loader workers that die."""

import errno
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..common.errors import UserError
from ..common.logger import WORKER_DIED, log

STEP, SAVE = "step", "save"  # phases that a signal does not break off, see StopSignals
LEAVE = 10.0  # seconds between breaking off a step and ending the process


def lock_folder(folder: Path, rank: int) -> TextIO:
    """Make the run's folder and lock it, until the returned file is closed or the process ends. Raises UserError.

    A POSIX lock: loader workers, which outlive a killed run by some seconds, do not inherit it.
    """
    path = folder / f".lock_{rank}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written to: {error.strerror}") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise UserError(f"another run is writing into {folder}; write another run.output_dir") from None
        log.warning("%s: cannot be locked (%s): do not write there with two commands at once", path, error.strerror)
    return file


@contextmanager
def worker_faults_explained() -> Iterator[None]:
    """Turn the death of a loader worker into a UserError that says what to do."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = str(error).partition("\n")[0].partition(". ")[0]
        if isinstance(error, (ConnectionError, EOFError)):
            text = "a loader worker has died while it sent a batch"
        elif not text.startswith(WORKER_DIED):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would raise again as the other workers end
        advice = "lower run.num_workers or run.batch_size_train; run.num_workers=0 loads in the run itself"
        cause = "/dev/shm is too small: docker run --shm-size=8g, or" if "Bus error" in text else "memory may be full:"
        raise UserError(f"{text.rstrip('. ')}: {cause} {advice}") from None


class StopSignals:
    """What SIGTERM and Ctrl-C do within this context.

    In a STEP or a SAVE the first signal is only noted in `received`: the run ends after the step. Everywhere else
    (`phase` is None), at a second signal, and `patience` seconds after the first in a STEP that does not end,
    KeyboardInterrupt(number) is raised. Where Python cannot raise, because a library waits, the process is ended.
    """

    def __init__(self):
        self.received = 0  # the signal's number
        self.phase: str | None = None
        self.patience = 60.0

    def __enter__(self) -> "StopSignals":
        self._over = threading.Event()  # the run ends by itself
        # A handler runs only between two Python instructions; the number of a signal is written to this socket at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._writer.close()

    def _note(self, number: int, _frame) -> None:
        again, self.received = self.received, number
        if again or self.phase is None:
            self._over.set()
            raise KeyboardInterrupt(number)

    @contextmanager
    def in_phase(self, phase: str | None) -> Iterator[None]:
        """For this block `phase` decides what a signal does."""
        before, self.phase = self.phase, phase
        try:
            if phase is None and self.received:
                raise KeyboardInterrupt(self.received)
            yield
        finally:
            self.phase = before

    def _watch(self) -> None:
        """In a thread: after the first signal, make sure that the process ends."""
        with self._reader:
            if not (number := self._next_signal(None)):
                return  # the context was left
            end = time.monotonic() + self.patience
            while (time.monotonic() < end or self.phase == SAVE) and not self._over.is_set():
                if self._next_signal(0.1):
                    break
            if not self._over.is_set():
                signal.pthread_kill(threading.main_thread().ident, number)
            if not self._over.wait(LEAVE):
                what = signal.Signals(number).name
                print(f"ended by {what} in a step that does not end; the last checkpoint stands", file=sys.stderr)
                sys.stderr.flush()
                os._exit(128 + number)

    def _next_signal(self, seconds: float | None) -> int:
        """The number of the next SIGTERM or SIGINT; 0 after so many seconds, or when the context was left."""
        self._reader.settimeout(seconds)
        try:
            while received := self._reader.recv(1):
                if received[0] in self._before:  # other signals are written too
                    return received[0]
        except TimeoutError:
            pass
        return 0
