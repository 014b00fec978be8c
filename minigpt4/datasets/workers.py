"""Loader workers: which signals end them, and how their batches reach the main process."""

import os
import signal
import sys
import threading
import traceback
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any

from ..common.errors import DataError


def set_up_worker(_worker: int) -> None:
    """Set up signals and the queue of batches. Every worker calls this first."""
    _leave_signals_to_the_run()
    sys.excepthook = _print_error
    Queue._on_queue_feeder_error = _send_reason  # PyTorch has no hook for this; Python's would drop the batch


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A run that ends while a worker sends a batch resets the connection, which is no error of the worker."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _leave_signals_to_the_run() -> None:
    """Ignore the Ctrl-C and SIGTERM that reach the whole process group: the run saves on them and still needs loaders.
    A SIGTERM of the run itself ends the worker: Python's exit would hang otherwise."""
    signal.set_wakeup_fd(-1)  # it is the run's own, see StopSignals
    if not hasattr(signal, "sigwaitinfo"):  # macOS: leave the group
        os.setpgid(0, 0)
        return
    run = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_with_the_run() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
            pass
        os._exit(0)

    threading.Thread(target=end_with_the_run, daemon=True).start()


def _send_reason(queue: Queue, error: Exception, item: Any) -> None:
    """Send the reason instead of a batch that cannot be sent. Without it the run would wait for the batch for ever."""
    try:
        number, (_, *state) = item
    except (TypeError, ValueError):  # no batch: the run sees that this worker is gone
        traceback.print_exception(error)
        os._exit(1)
    queue.put((number, ({"bad": [], "hopeless": False, "failed": str(error).partition("\n")[0]}, *state)))


def check_sent(batch: dict) -> None:
    """Raise DataError if the worker sent a reason instead of a batch."""
    if reason := batch.get("failed"):
        advice = "run.num_workers=0 loads in the run itself"
        if "No space left" in reason or "Cannot allocate" in reason:
            advice = "/dev/shm is full: docker run --shm-size=8g, or lower run.num_workers or run.batch_size_train"
        elif "Too many open files" in reason:
            advice = "raise the limit with `ulimit -n 65536`, or lower run.num_workers"
        raise DataError(f"a loader worker cannot send a batch: {reason}\n  {advice}")
