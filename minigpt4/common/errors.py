"""User errors: one clear message, no traceback, a non-zero exit."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. Its text says what is wrong, where, and what to write instead."""


class ConfigError(UserError):
    """One or more problems of a config, all in one message."""


class CheckpointError(UserError):
    """A weight file is missing, damaged, or does not fit the model."""


class DataError(UserError):
    """Training data that cannot be read, or too much of it that is bad."""


def did_you_mean(word: str, known) -> str:
    """`; did you mean 'x'?`, or an empty string when nothing known looks like `word`."""
    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def file_like(path: str, files: Iterable[str]) -> str:
    """`; did you mean 'dir/x.yaml'?`: the file whose name, without folder and ending, looks like that of `path`."""
    by_stem = {Path(file).stem: file for file in files}
    close = get_close_matches(Path(path).stem, by_stem, n=1)
    return f"; did you mean {by_stem[close[0]]!r}?" if close else ""


def some(names: Iterable[str], most: int = 4) -> str:
    """a, b, c, d and 7 more"""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def main_guard(main: Callable[[], int | None]) -> int:
    """Run a command's `main`; print a UserError's message alone and return 1. Other exceptions keep their traceback."""
    try:
        return main() or 0
    except UserError as error:
        # Under torchrun every process finds the same fault in the config: one of them says so.
        if not (isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"):
            print(f"error: {error}", file=sys.stderr)
        _leave_torchrun(error)
        return 1
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            traceback.print_exc()
        _leave_torchrun(error)
        raise
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr)
        return 130


def _leave_torchrun(error: Exception) -> None:
    """Under torchrun: leave the reason for the report it prints when it has ended the other processes, and go at once.
    Python's own end would wait for the others, who wait for this one, until torchrun loses patience (30 s)."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        if not isinstance(error, UserError):
            time.sleep(3)  # a lost connection is told after the reason for it: torchrun names the first, by the second
        get_error_handler().record_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
