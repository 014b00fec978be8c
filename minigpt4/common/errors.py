"""User errors: one clear message, no traceback, a non-zero exit."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can put right. Its text says what is wrong, where, and what to write instead."""


class Stopped(UserError):
    """A signal ended a run in good order."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.code = 128 + number  # as a shell counts a process that the signal killed


class ConfigError(UserError):
    """One or more problems of a config, all in one message."""


class CheckpointError(UserError):
    """A weight file is missing, damaged, or does not fit the model."""


class DataError(UserError):
    """Training data that cannot be read, or too much of it that is bad."""


def did_you_mean(word: str, known: Iterable) -> str:
    """`; did you mean 'x'?`, or an empty string when nothing known looks like `word`."""
    close = get_close_matches(str(word), map(str, known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def suggest(word: str, known: Iterable) -> str:
    """`; did you mean 'x'?`, or the first of what is known when nothing looks like `word`."""
    names = [str(name) for name in known]
    return did_you_mean(word, names) or f"; known: {some(names, 8)}"


def some(names: Iterable[str], most: int = 4) -> str:
    """a, b, c, d and 7 more"""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def main_guard(main: Callable[[], int | None]) -> int:
    """Run a command's `main` and return its exit code: 1 after the message of a UserError, 128 + the signal's number
    when a signal ended it. Other exceptions keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names and answers that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as if SIGPIPE had ended it: `minigpt4 describe *.jpg | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
        return 141
    except (UserError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):  # its argument may be the signal's number
            number = error.args[0] if error.args else signal.SIGINT
            error = Stopped(f"stopped by {'the user' if number == signal.SIGINT else 'a signal'}", number)
        # Under torchrun every process finds the same fault in a config, and stops at the same step: rank 0 says so.
        another_tells = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
        if not (another_tells and isinstance(error, (ConfigError, Stopped))):
            print(error if isinstance(error, Stopped) else f"error: {error}", file=sys.stderr)
        return _leave(error, getattr(error, "code", 1))
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            traceback.print_exc()
            time.sleep(3)  # a lost connection is told after the reason for it: torchrun names the first, by the second
        _leave(error, 1)
        raise


def _leave(error: Exception, code: int) -> int:
    """Under torchrun, leave the reason for its report and exit at once. Python's own end would wait for the other
    processes, who wait for this one, until torchrun loses patience (30 s)."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
