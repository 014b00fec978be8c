"""User errors: one clear message, no traceback, a non-zero exit."""

import os
import select
import signal
import sys
import time
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path


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


def file_like(path: str, files: Iterable[str]) -> str:
    """`; did you mean 'dir/x.yaml'?`: the file whose name, without folder and ending, looks like that of `path`."""
    by_stem = {Path(file).stem: file for file in files}
    close = get_close_matches(Path(path).stem, by_stem, n=1)
    return f"; did you mean {by_stem[close[0]]!r}?" if close else ""


def some(names: Iterable[str], most: int = 4) -> str:
    """a, b, c, d and 7 more"""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def valid_text(text: str) -> str:
    """The type of an argument that is a text: bytes that are not UTF-8, which Python makes surrogates, are refused."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = os.fsencode(text[error.start]).hex()
        raise ArgumentTypeError(f"character {error.start + 1} is byte 0x{wrong}, which is not UTF-8") from None
    return text


def main_guard(main: Callable[[], int | None]) -> int:
    """Run a command's `main` and return its exit code: 1 after the message of a UserError, 128 + the signal's number
    when a signal ended it. Other exceptions keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names and answers that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    # Under torchrun every process finds the same fault in a config, and stops at the same step: rank 0 says so.
    another_tells = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        return 141  # as if SIGPIPE had ended it: `minigpt4 describe *.jpg | head -1`
    except Stopped as error:
        return _leave(error, "" if another_tells else str(error), error.code)
    except UserError as error:
        silent = another_tells and isinstance(error, ConfigError)
        return _leave(error, "" if silent else f"error: {error}", 1)
    except KeyboardInterrupt as error:  # its argument may be the signal's number
        number = error.args[0] if error.args else signal.SIGINT
        return _leave(error, f"stopped by {'the user' if number == signal.SIGINT else 'a signal'}", 128 + number)
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            traceback.print_exc()
            time.sleep(3)  # a lost connection is told after the reason for it: torchrun names the first, by the second
        _leave(error, "", 1)
        raise


def _stdout_is_closed() -> bool:
    """Whether nobody reads stdout any more. Python's own last flush of it then goes to /dev/null."""
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # captured
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # without events it tells of errors and hang-ups
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _leave(error: BaseException, message: str, code: int) -> int:
    """Print the message. Under torchrun, leave the reason for the report it prints when it has ended the other
    processes, and go at once: Python's own end would wait for the others, who wait for this one, until torchrun loses
    patience (30 s)."""
    if message:
        print(message, file=sys.stderr)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        if isinstance(error, Exception):
            get_error_handler().record_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
