"""Waits that would have no end, and how a signal ends a run."""

import ctypes
import os
import signal
import threading
import time

import pytest
import torch
from loops import Given, GivenTask, Slope

from minigpt4.common.checkpoint import find_latest
from minigpt4.common.errors import DataError, Stopped, UserError
from minigpt4.common.schema import BuildInfo, DatasetConfig
from minigpt4.datasets.stream import MixedLoader, SampleStream, make_loader
from minigpt4.runners import process
from minigpt4.runners.process import SAVE, STEP, StopSignals, worker_faults_explained


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """PyTorch waits 5 s for a worker that does not end."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


# -- loader workers -----------------------------------------------------------------------------------------------


class Numbers:
    """A source of pictures of one number; `spoil` is called with each sample in the worker."""

    def __init__(self, spoil=lambda sample: None):
        self.spoil = spoil

    def iterate(self, stream, streams, seed, state):
        number = state.get("number", 0)
        while True:
            number += 1
            yield {"number": number}, str(number), number

    def decode(self, raw):
        sample = {"image": torch.full((3, 2, 2), float(raw)), "text_input": str(raw)}
        self.spoil(sample)
        return sample


def loader_of(source, num_workers=1):
    return MixedLoader({"x": make_loader(SampleStream(source, "x"), 2, num_workers)}, {"x": 1.0}, 0, 0)


def no_text(sample):
    sample["text_input"] = lambda: "cannot be pickled"


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "--shm-size=8g"),
        ("unable to open shared memory object </torch_1>: Too many open files (24)", "ulimit -n 65536"),
        (None, "run.num_workers=0 loads in the run itself"),
    ],
)
def test_a_batch_that_cannot_be_sent_ends_the_run(monkeypatch, fault, advice):
    def fail(_storage):
        raise RuntimeError(fault)

    if fault:
        monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", fail)
    with pytest.raises(DataError, match="a loader worker cannot send a batch: ") as error:
        next(iter(loader_of(Numbers(lambda sample: None if fault else no_text(sample)))))
    assert advice in str(error.value) and (fault or "pickle") in str(error.value)


class Loaded(GivenTask):
    def __init__(self, source, before_step=lambda step: None):
        super().__init__([], before_step)
        self.source = source

    def build_loader(self, rank, world_size, seed, drawn=0):
        return loader_of(self.source)

    def train_step(self, model, batch):
        return super().train_step(model, {"x": batch["image"].mean()})


def test_a_worker_that_was_killed_ends_the_run(run):
    def kill(sample):
        if sample["text_input"] == "5":
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"worker .*: memory may be full: lower run\.num_workers"):
        run(Slope(), Loaded(Numbers(kill)), iters_per_epoch=9)


def test_why_a_worker_was_killed():
    say = "DataLoader worker (pid 7) is killed by signal: {}. Details."
    for error, raised, words in (
        (RuntimeError(say.format("Bus error")), UserError, "--shm-size"),
        (RuntimeError(say.format("Killed")), UserError, "memory may be full"),
        (ConnectionResetError("reset by peer"), UserError, "memory may be full"),
        (RuntimeError("CUDA out of memory"), RuntimeError, "CUDA out of memory"),
    ):
        with pytest.raises(raised, match=words), worker_faults_explained():
            raise error


# -- signals ------------------------------------------------------------------------------------------------------


class Stuck(Given):
    """The batch `stuck` never comes."""

    def __init__(self, batches, stuck):
        super().__init__(batches)
        self.stuck = stuck

    def __iter__(self):
        for batch in super().__iter__():
            if self.taken == self.stuck:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(60)
            yield batch


class StuckTask(GivenTask):
    def __init__(self, batches, stuck=None):
        super().__init__(batches)
        self.stuck = stuck

    def build_loader(self, rank, world_size, seed, drawn=0):
        return Stuck(self.batches, self.stuck)


BATCHES = [{"x": x} for x in (1.0, -3.0, 0.5, 2.0)]


@pytest.mark.parametrize(("accumulated", "stuck", "saved"), [(1, 3, 2), (2, 3, 1), (2, 4, 1)])
def test_a_wait_for_data_is_broken_off(run, tmp_path, accumulated, stuck, saved):
    """What was made is saved; half a step is taken back."""
    keys = dict(iters_per_epoch=4, accum_grad_iters=accumulated, init_lr=0.1)
    started = time.monotonic()
    with pytest.raises(Stopped, match=f"stopped by a signal after step {saved}; saved") as stopped:
        run(Slope(), StuckTask(BATCHES, stuck), **keys)
    assert stopped.value.code == 143 and time.monotonic() - started < 30
    assert find_latest(tmp_path / "out")[0].name == f"checkpoint_step_{saved}.pth"
    again, whole = Slope(), Slope()
    run(again, StuckTask(BATCHES), **keys)
    run(whole, StuckTask(BATCHES), "whole", **keys)
    assert torch.equal(again.w, whole.w)


def test_a_wait_for_the_first_batch_is_broken_off(run, tmp_path):
    with pytest.raises(Stopped, match="stopped by a signal before the first step"):
        run(Slope(), StuckTask(BATCHES, 1))
    assert not list((tmp_path / "out").glob("*.pth"))


def test_a_worker_that_hangs_is_not_waited_for(run):
    def hang(sample):
        if sample["text_input"] == "3":
            time.sleep(60)

    stop = lambda step: threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()  # noqa: E731
    with pytest.raises(Stopped, match="after step 1; saved"):
        run(Slope(), Loaded(Numbers(hang), stop), iters_per_epoch=9)


class Validated(GivenTask):
    def __init__(self, seconds):
        super().__init__([{"x": 1.0}])
        self.seconds = seconds

    def validation_batches(self, rank, world_size):
        if self.seconds:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(self.seconds)
        yield {"text_input": ["a"], "x": 1.0}


def test_validation_is_broken_off_and_done_when_the_run_goes_on(run):
    keys = dict(datasets={"given": DatasetConfig(valid_info=BuildInfo(storage="x"))}, iters_per_epoch=2)
    with pytest.raises(Stopped, match="after step 2; saved") as stopped:
        run(Slope(), Validated(60), **keys)
    assert stopped.value.code == 130
    assert run(Slope(), Validated(0), **keys).validation.best_step == 2  # there was nothing else left to do
    assert run(Slope(), Validated(60), **keys).step == 2


def in_a_process(work) -> int:
    """The exit code of `work` within StopSignals, 0.2 s after which a SIGTERM comes."""
    pid = os.fork()
    if pid == 0:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            with StopSignals() as signals:
                signals.patience = 0.3
                work(signals)
        except KeyboardInterrupt as error:
            os._exit(error.args[0])
        os._exit(0)
    end = time.monotonic() + 20
    while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(status[1])


def never_returns() -> None:
    """A wait in a library, which no signal ends: a lock that is held already."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)


def test_a_step_that_does_not_end_is_ended(monkeypatch, capfd):
    monkeypatch.setattr(process, "LEAVE", 0.3)

    def sleeps(phase, seconds=60.0):
        def work(signals):
            with signals.in_phase(phase):
                time.sleep(seconds)

        return work

    def is_stuck(signals):
        with signals.in_phase(STEP):
            never_returns()

    assert in_a_process(sleeps(None)) == signal.SIGTERM  # at once, KeyboardInterrupt
    assert in_a_process(sleeps(STEP)) == signal.SIGTERM  # after `patience`
    assert in_a_process(sleeps(STEP, 0.3)) == 0  # the step ends
    assert in_a_process(sleeps(SAVE, 1.2)) == 0  # a checkpoint is written to its end
    assert capfd.readouterr().err == ""
    assert in_a_process(is_stuck) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "ended by SIGTERM in a step that does not end; the last checkpoint stands\n"
