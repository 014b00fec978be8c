"""Locks, and files that are written whole or not at all."""

import errno
import fcntl
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from minigpt4.common import download
from minigpt4.common.checkpoint import atomic_save
from minigpt4.common.errors import CheckpointError, UserError
from minigpt4.common.paths import whole_file
from minigpt4.runners.process import lock_folder


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("minigpt4"), "propagate", True)
    return caplog


def failing(number: int):
    """A function that raises OSError(number)."""

    def call(*arguments, **keys):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_goes_on_where_there_are_no_locks(tmp_path, monkeypatch, warnings, number):
    monkeypatch.setattr(fcntl, "lockf", failing(number))
    with lock_folder(tmp_path, 0):
        pass
    assert f"cannot be locked ({os.strerror(number)}): do not write there with two commands" in warnings.text


def test_a_lock_that_another_holds_is_told_from_one_that_fails(tmp_path, monkeypatch):
    for number in (errno.EAGAIN, errno.EACCES):
        monkeypatch.setattr(fcntl, "lockf", failing(number))
        with pytest.raises(UserError, match="another run is writing into"):
            lock_folder(tmp_path, 0)


@pytest.mark.parametrize(
    ("where", "name", "number", "said"),
    [
        (os, "fsync", errno.EIO, "Input/output error"),
        (Path, "replace", errno.EACCES, "Permission denied"),
        (Path, "chmod", errno.EROFS, "Read-only file system"),
    ],
)
def test_a_real_fault_ends_the_writing(tmp_path, monkeypatch, where, name, number, said):
    monkeypatch.setattr(where, name, failing(number))
    with pytest.raises(CheckpointError, match=f"cannot be written: .*{said}"):
        atomic_save({"w": torch.ones(1)}, tmp_path / "w.pth")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_while_safetensors_writes(tmp_path):
    def save(state, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be written: .*No space left"):
        atomic_save({"w": torch.ones(1)}, tmp_path / "w.safetensors", save)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), ValueError("a bug")])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, error):
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)), whole_file(tmp_path / "x") as part:
        part.write_text("half")
        raise error
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT4_CACHE", str(tmp_path))
    for number, said in ((errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")):
        monkeypatch.setattr(Path, "mkdir", failing(number))
        with pytest.raises(download.DownloadError, match=f"{said}.*; free space there, or set MINIGPT4_CACHE"):
            download.fetch("https://example.org/w.pth")
