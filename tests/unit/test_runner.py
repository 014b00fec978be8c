"""The loop on batches that are given: accumulation, the schedule, and what ends a run."""

import json
import os
import signal
import sys

import pytest
import torch
from accelerate import Accelerator
from loops import GivenTask, Slope
from torch import nn

from minigpt4.common.checkpoint import find_latest
from minigpt4.common.dist_utils import DeviceError, choose_device, training_device
from minigpt4.common.errors import ConfigError, UserError
from minigpt4.common.logger import MetricLog, read_log
from minigpt4.common.optims import create_optimizer
from minigpt4.common.registry import OPTIMIZERS
from minigpt4.common.schema import BuildInfo, DatasetConfig, RunConfig
from minigpt4.runners import progress
from minigpt4.runners import runner as runner_module
from minigpt4.runners.averaging import WeightAverage
from minigpt4.runners.checkpointing import changes
from minigpt4.runners.runner import frozen_names
from minigpt4.runners.validation import sum_of_losses

CPU = torch.device("cpu")


def log_rows(tmp_path, folder="out"):
    return read_log(tmp_path / folder / "log.jsonl")


def test_two_batches_of_two_are_a_batch_of_four(run, make_model, golden, tmp_path):
    image = torch.from_numpy(golden("forward")["image"])
    texts = ["a house", "two people walk", "two people walk", "a house"]  # as many tokens in each half
    halves = [{"image": image[i : i + 2], "text_input": texts[i : i + 2]} for i in (0, 2)]
    one, two = make_model(), make_model()
    run(one, GivenTask(halves), "accumulated", batch_size_train=2, accum_grad_iters=2, init_lr=1e-2)
    run(two, GivenTask([{"image": image, "text_input": texts}]), "whole", batch_size_train=4, init_lr=1e-2)
    losses = [[r["loss"] for r in log_rows(tmp_path, f)] for f in ("accumulated", "whole")]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][2] < losses[0][0]
    assert (one.llama_proj.weight - two.llama_proj.weight).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("written", "compiler", "compiled"), [("auto", True, 1), ("auto", False, 0), (True, False, 1), (False, True, 0)]
)
def test_auto_compiles_where_there_is_a_compiler(run, monkeypatch, written, compiler, compiled):
    calls = []
    monkeypatch.setattr(Slope, "compile_layers", lambda self: calls.append(self), raising=False)
    monkeypatch.setattr(runner_module, "has_cpp_compiler", lambda: compiler)
    run(Slope(), GivenTask([{"x": 1.0}]), compile=written)
    assert len(calls) == compiled


def test_the_schedule_is_set_before_each_step(run, tmp_path):
    keys = dict(init_lr=1.0, min_lr=0.5, warmup_lr=0.0, warmup_steps=2, weight_decay=0.0)
    model = Slope()
    run(model, GivenTask([{"x": 1.0}]), iters_per_epoch=2, max_epoch=2, **keys)
    lrs = [r["lr"] for r in log_rows(tmp_path)]
    assert lrs == pytest.approx([0.0, 0.5, 0.75, 0.5 + 0.25 * (1 + 0.5**0.5 * -1)])
    # AdamW's step is lr times 1 here, for the gradient never changes.
    assert model.w.item() == pytest.approx(-sum(lrs), rel=1e-4)
    assert [r["epoch"] for r in log_rows(tmp_path)] == [0, 0, 1, 1]


def test_gradients_are_clipped_to_their_norm(run, monkeypatch):
    seen = []
    model = Slope()
    step = torch.optim.AdamW.step

    def spied(self, *arguments, **keys):
        seen.append(model.w.grad.item())
        return step(self, *arguments, **keys)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    run(model, GivenTask([{"x": 40.0}]), "clipped", grad_clip=0.5)
    run(model, GivenTask([{"x": 40.0}]), "free")
    assert seen == pytest.approx([0.5] * 3 + [40.0] * 3, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped(run, tmp_path, value):
    batches = [{"x": torch.tensor(1.0)}, {"x": torch.tensor(value)}, {"x": torch.tensor(1.0)}]
    model = Slope()
    done = run(model, GivenTask(batches), init_lr=1.0, min_lr=1.0, weight_decay=0.0, max_bad_steps=1)
    assert model.w.item() == pytest.approx(-2, rel=1e-4)  # two steps of AdamW, each as large as the learning rate
    assert [r.get("skipped") for r in log_rows(tmp_path)] == [None, True, None]
    assert "loss" not in log_rows(tmp_path)[1]
    assert (done.guard.skipped, done.guard.in_a_row) == (1, 0)


def test_a_gradient_that_is_not_finite_is_skipped(run):
    class Edge(Slope):
        """loss = sqrt(|w|): its gradient at 0 has no value, the loss has."""

        def forward(self, batch):
            return {"loss": (self.w * batch["x"]).abs().sqrt()}

    model = Edge()
    done = run(model, GivenTask([{"x": 1.0}]))
    assert (model.w.item(), done.guard.skipped) == (0, 3)


def test_too_many_bad_steps_in_a_row_end_the_run(run, tmp_path):
    batches = [{"x": 1.0}, {"x": 1.0}, {"x": float("nan")}, {"x": float("nan")}]
    with pytest.raises(UserError, match=r"the loss of step 4 is nan, 2 steps in a row \(run\.max_bad_steps is 1\)"):
        run(Slope(), GivenTask(batches), iters_per_epoch=4, save_every_steps=2, max_bad_steps=1)
    assert [p.name for p in (tmp_path / "out").glob("*.pth")] == ["checkpoint_step_2.pth"]


def test_bad_steps_are_counted_over_a_restart(run, tmp_path):
    """Killed between two bad steps, the run still knows of the first."""
    batches = [{"x": 1.0}, {"x": float("nan")}]
    task = GivenTask(batches, lambda step: step == 1 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(UserError, match="stopped by a signal after step 2"):
        run(Slope(), task, iters_per_epoch=4)
    with pytest.raises(UserError, match="2 steps in a row"):
        run(Slope(), GivenTask([{"x": float("nan")}]), iters_per_epoch=4, max_bad_steps=1)


@pytest.fixture
def run_fp16(run, monkeypatch):
    """As on a GPU without bf16: fp16 with a loss scaler, which PyTorch has for the CPU too."""
    prepare = Accelerator.prepare

    def with_scaler(self, *arguments, **keys):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        prepared = prepare(self, *arguments, **keys)
        self.native_amp = True
        return prepared

    monkeypatch.setattr(Accelerator, "prepare", with_scaler)
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    return run


def test_fp16_logs_the_real_norm(run_fp16, tmp_path):
    model = Slope()
    run_fp16(model, GivenTask([{"x": 3.0}]), init_lr=1.0, min_lr=1.0, weight_decay=0.0)
    assert [r["grad_norm"] for r in log_rows(tmp_path)] == [3.0] * 3
    assert model.w.item() == pytest.approx(-3, rel=1e-4)


class Overflows(Slope):
    """Its gradient is infinite while the loss scale is above 2^14, as an overflow in fp16 would be."""

    def forward(self, batch):
        loss = self.w * batch["x"]
        loss.register_hook(lambda g: torch.where(g > 2.0**14, torch.inf, g))
        return {"loss": loss}


def test_an_fp16_overflow_lowers_the_scale_and_is_counted(run_fp16, tmp_path):
    model = Overflows()
    done = run_fp16(model, GivenTask([{"x": 1.0}]), iters_per_epoch=5, max_bad_steps=0, init_lr=1.0, min_lr=1.0)
    assert [r.get("skipped") for r in log_rows(tmp_path)] == [True, True, None, None, None]
    assert done.accelerator.scaler.get_scale() == 2.0**14
    assert done.guard.skipped == 2 and model.w.item() < -2


def test_fp16_gradients_that_are_never_finite_end_the_run(run_fp16):
    class Never(Slope):
        def forward(self, batch):
            return {"loss": (self.w * batch["x"]).abs().sqrt()}  # no gradient at 0

    with pytest.raises(UserError, match=r"the gradient of step 20 is not finite .*, 4 steps in a row"):
        run_fp16(Never(), GivenTask([{"x": 1.0}]), iters_per_epoch=1000, max_bad_steps=3)


def test_one_look_at_the_device_in_a_step(run, make_model, golden, monkeypatch):
    """Every `.item()`, `.tolist()` or `bool()` of a tensor makes the host wait for a GPU."""
    image = torch.from_numpy(golden("forward")["image"])
    looks, step = [], []
    for name in ("item", "tolist", "__bool__", "__float__", "nonzero"):
        kind = getattr(torch.Tensor, name)

        def spied(self, *arguments, kind=kind, name=name):
            frame = sys._getframe(1)
            if "minigpt4" in frame.f_code.co_filename and step:
                looks.append((name, frame.f_code.co_name))
            return kind(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, spied)
    run(make_model(), GivenTask([{"image": image, "text_input": ["a dog"] * 4}], lambda n: step.append(n)))
    # The last step writes a checkpoint, which must look.
    assert looks[:3] == [("tolist", "_all_reduce_step_facts")] * 3


def test_a_run_closes_its_loader(run):
    """Its processes end with the run, not when Python's collector comes by."""
    task, closed = GivenTask([{"x": 1.0}]), []
    build = task.build_loader

    def build_loader(*arguments):
        loader = build(*arguments)
        loader.close = lambda: closed.append(loader.taken)
        return loader

    task.build_loader = build_loader
    run(Slope(), task)
    assert closed == [3]


def test_another_optimizer(run, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS._entries, "steady", lambda groups, lr, pull: torch.optim.SGD(groups, lr, pull))
    model = Slope()
    keys = dict(init_lr=0.5, min_lr=0.5, weight_decay=0.0)
    run(model, GivenTask([{"x": 2.0}]), "sgd", optimizer="sgd", **keys)
    assert model.w.item() == pytest.approx(-3)  # three steps of 0.5 * 2
    done = run(Slope(), GivenTask([{"x": 2.0}]), "steady", optimizer="steady", optimizer_kwargs={"pull": 0.9}, **keys)
    assert done.optimizer.param_groups[0]["momentum"] == 0.9
    done = run(Slope(), GivenTask([{"x": 2.0}]), "betas", optimizer_kwargs={"betas": [0.5, 0.6]}, **keys)
    assert tuple(done.optimizer.param_groups[0]["betas"]) == (0.5, 0.6)
    with pytest.raises(ConfigError, match=r"run\.optimizer_kwargs: sgd does not take .*'betas'"):
        run(Slope(), GivenTask([]), "wrong", optimizer="sgd", optimizer_kwargs={"betas": [0.5, 0.6]})


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", None)])
def test_adamw_is_fused_on_cuda(device, fused, monkeypatch):
    seen = {}
    monkeypatch.setitem(OPTIMIZERS._entries, "adamw", lambda groups, lr, betas=0, fused=None: seen.update(fused=fused))
    create_optimizer(RunConfig(), Slope(), torch.device(device))
    assert seen == {"fused": fused}


def test_what_ddp_leaves_alone():
    """Frozen parts, buffers and all; but the statistics of a trained batch norm are the same in every process."""
    model = nn.ModuleDict({
        "frozen": nn.BatchNorm1d(2).requires_grad_(False), "trained": nn.BatchNorm1d(2), "layer": nn.Linear(2, 2),
    })  # fmt: skip
    model.register_buffer("positions", torch.zeros(1))
    assert set(frozen_names(model)) == {
        "positions", "frozen.weight", "frozen.bias", "frozen.running_mean", "frozen.running_var",
        "frozen.num_batches_tracked",
    }  # fmt: skip


def test_validation_touches_one_gpu(monkeypatch):
    """`fork_rng()` would make a CUDA context on each of eight GPUs."""
    seen, fork = [], torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=None: seen.append(devices) or fork(devices=[]))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sum_of_losses(Slope(), [], lambda model, batch: torch.zeros(()))
    assert seen == [[3]]


def test_the_log_tells_of_data_and_padding(run, make_model, golden, tmp_path):
    image = torch.from_numpy(golden("forward")["image"])[:2]
    model = make_model()
    done = run(model, GivenTask([{"image": image, "text_input": ["a dog", "a dog"]}]))
    row = log_rows(tmp_path)[-1]
    assert row["padding_share"] == 0 and row["tokens_per_second"] > 0 and 0 <= row["data_wait_share"] < 1
    samples = {"image": image, "text_input": ["a dog", "the river near a mountain"]}
    batch = model.build_batch(samples)
    done.throughput.row()
    with done.throughput.counting(batch):
        pass
    done.throughput.seconds = 2.0
    row = done.throughput.row()
    assert row["tokens_per_second"] == batch["attention_mask"].sum() / 2
    assert row["padding_share"] == pytest.approx(1 - batch["attention_mask"].float().mean().item(), abs=1e-4)


def test_mfu_counts_forward_and_backward(monkeypatch):
    """On a GPU whose peak is known: the FLOPs of the first step, for each position, over time and peak."""
    monkeypatch.setattr(progress.torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(progress.torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    seen = progress.Throughput(torch.device("cuda"))
    assert seen.peak == 312e12
    left = torch.randn(8, 16, requires_grad=True)
    for _ in range(2):
        with seen.counting({"input_ids": torch.zeros(2, 4), "tokens": 6}):
            (left @ torch.randn(16, 32)).sum().backward()
    seen.seconds = 1e-9
    row = seen.row()
    assert row["mfu"] == pytest.approx(2 * 2 * (2 * 8 * 16 * 32) / 1e-9 / 312e12, abs=1e-3)
    assert row["peak_memory_gib"] == 3


# -- validation ---------------------------------------------------------------------------------------------------


class Judged(GivenTask):
    """Validation losses are given; w tells which step's weights they are of."""

    def __init__(self, losses):
        super().__init__([{"x": 1.0}])
        self.losses = iter(losses)

    def validation_batches(self, rank, world_size):
        yield {"text_input": ["a", "b", "c"], "loss": next(self.losses)}

    def train_step(self, model, batch):
        return torch.tensor(batch["loss"]) if "loss" in batch else super().train_step(model, batch)


HELD_OUT = {"given": DatasetConfig(valid_info=BuildInfo(storage="x"))}


def test_validation_keeps_the_best_and_stops_early(run, tmp_path):
    keys = dict(iters_per_epoch=1, max_epoch=9, early_stop=2, init_lr=1.0, min_lr=1.0, weight_decay=0.0)
    model = Slope()
    done = run(model, Judged([3.0, 1.0, 2.0, 1.5]), datasets=HELD_OUT, **keys)
    assert done.step == 4
    assert [r["valid_loss"] for r in log_rows(tmp_path) if "valid_loss" in r] == [3.0, 1.0, 2.0, 1.5]
    best = torch.load(tmp_path / "out/checkpoint_best.pth", weights_only=True)
    assert (best["step"], best["valid_loss"]) == (2, 1.0)
    assert best["model"]["w"].item() == pytest.approx(-2, rel=1e-4)
    latest, complaints = find_latest(tmp_path / "out")
    assert (latest.name, complaints) == ("checkpoint_3.pth", [])
    assert run(Slope(), Judged([]), datasets=HELD_OUT, **keys).step == 4  # it has finished: nothing more is done


def test_going_on_knows_the_best_so_far(run, tmp_path):
    keys = dict(iters_per_epoch=1, early_stop=2)
    run(Slope(), Judged([1.0, 2.0]), datasets=HELD_OUT, max_epoch=2, **keys)
    done = run(Slope(), Judged([1.5]), datasets=HELD_OUT, max_epoch=9, **keys)
    assert (done.step, done.validation.best, done.validation.best_step) == (3, 1.0, 1)


def test_validation_leaves_the_processs_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = [{"text_input": ["a"]}]
    totals = [sum_of_losses(Slope(), batches, lambda model, batch: torch.rand(())) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert totals[0] == totals[1]


# -- the average of the weights -----------------------------------------------------------------------------------


class Watched(Judged):
    """Notes the weight that each validation saw."""

    def __init__(self, batches):
        GivenTask.__init__(self, batches)
        self.seen = []

    def validation_batches(self, rank, world_size):
        yield {"text_input": ["a"], "loss": 1.0}

    def train_step(self, model, batch):
        self.seen += [model.w.item()] if "loss" in batch else []
        return super().train_step(model, batch)


def test_the_average_is_validated_saved_and_taken_up(run, tmp_path):
    keys = dict(init_lr=1.0, min_lr=1.0, weight_decay=0.0, ema_decay=0.15, valid_every_steps=1, datasets=HELD_OUT)
    model, task = Slope(), Watched([{"x": 1.0}])
    run(model, task, "whole", iters_per_epoch=4, **keys)
    average, expected = 0.0, []  # w is -1, -2, -3, -4 after the steps
    for step in range(1, 5):
        decay = min(0.15, step / (step + 9))
        average = decay * average + (1 - decay) * -step
        expected.append(average)
    assert task.seen == pytest.approx(expected, rel=1e-4)
    assert model.w.item() == pytest.approx(-4, rel=1e-4)  # training went on from its own weights
    saved = [
        torch.load(tmp_path / "whole" / f"checkpoint_{n}.pth", weights_only=True)["model"]["w"] for n in ("best", 0)
    ]
    assert [w.item() for w in saved] == pytest.approx([expected[0], expected[-1]], rel=1e-4)

    run(Slope(), Watched([{"x": 1.0}]), "parts", iters_per_epoch=2, **keys)
    again = Slope()
    run(again, Watched([{"x": 1.0}]), "parts", iters_per_epoch=2, max_epoch=2, **keys)
    assert torch.equal(again.w, model.w)
    assert torch.equal(torch.load(tmp_path / "parts/checkpoint_1.pth", weights_only=True)["model"]["w"], saved[1])


def test_the_average_is_put_in_only_where_it_is_looked_at(run, monkeypatch):
    applied, entered = WeightAverage.applied, []
    monkeypatch.setattr(WeightAverage, "applied", lambda self: entered.append(1) or applied(self))
    keys = dict(ema_decay=0.15, valid_every_steps=3, datasets=HELD_OUT, iters_per_epoch=7)
    run(Slope(), Watched([{"x": 1.0}]), **keys)
    assert len(entered) == 2


def test_a_signal_ends_after_the_step_and_restores_the_handlers(run, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    task = GivenTask([{"x": 1.0}], lambda step: step == 1 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(UserError, match="stopped by a signal after step 2; saved"):
        run(Slope(), task, iters_per_epoch=5)
    assert (tmp_path / "out" / "checkpoint_step_2.pth").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    done = run(Slope(), GivenTask([{"x": 1.0}]), iters_per_epoch=5)
    assert done.step == 5 and done.loader.taken == 5


def test_a_signal_in_the_last_step_changes_nothing(run, tmp_path):
    task = GivenTask([{"x": 1.0}], lambda step: step == 2 and os.kill(os.getpid(), signal.SIGINT))
    assert run(Slope(), task).step == 3
    assert (tmp_path / "out" / "checkpoint_0.pth").exists()


def test_a_second_ctrl_c_ends_at_once(run, tmp_path):
    task = GivenTask([{"x": 1.0}], lambda step: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run(Slope(), task)
    assert not list((tmp_path / "out").glob("*.pth"))


def test_another_number_of_workers_starts_the_pass_anew(run, tmp_path, caplog, monkeypatch):
    run(Slope(), GivenTask([{"x": 1.0}]), iters_per_epoch=2)
    sidecar = tmp_path / "out" / "checkpoint_0.resume.pt"
    resume = torch.load(sidecar, weights_only=True)
    torch.save({**resume, "num_workers": 3}, sidecar)
    monkeypatch.setattr(runner_module.log, "propagate", True)
    done = run(Slope(), GivenTask([{"x": 1.0}]), iters_per_epoch=2, max_epoch=2)
    assert "is of 1 processes x 3 workers, this run of 1 x 0: the pass over each dataset starts anew" in caplog.text
    assert done.step == 4
    assert done.loader.began == 2


def test_a_checkpoint_of_another_model_is_refused(run):
    run(Slope(), GivenTask([{"x": 1.0}]))

    class Other(Slope):
        def trained_tensors(self):
            return {"v": self.w}

    with pytest.raises(UserError, match=r"(?s)checkpoint_0\.pth does not fit this model.*missing: v.*unexpected: w"):
        run(Other(), GivenTask([{"x": 1.0}]), max_epoch=2)
    done = run(Other(), GivenTask([{"x": 1.0}]), resume="never")
    assert done.step == 3


def test_nothing_to_train_is_refused(run):
    with pytest.raises(UserError, match="nothing to train"):
        run(Slope().requires_grad_(False), GivenTask([{"x": 1.0}]))


def test_minutes_between_checkpoints(run, tmp_path):
    run(Slope(), GivenTask([{"x": 1.0}]), iters_per_epoch=4, save_every_minutes=1e-9, keep_last=2)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.pth")) == [
        "checkpoint_0.pth", "checkpoint_step_2.pth", "checkpoint_step_3.pth",
    ]  # fmt: skip


# -- devices and precision ----------------------------------------------------------------------------------------


def test_devices(monkeypatch):
    assert choose_device() == choose_device("auto") == CPU == training_device("auto")  # the tests hide any GPU
    with pytest.raises(DeviceError, match=r"^run\.device=cuda: PyTorch finds no CUDA GPU .*; write run\.device=cpu$"):
        training_device("cuda")
    with pytest.raises(DeviceError, match=r"^--gpu-id 0: PyTorch finds no CUDA GPU .*; write --device cpu$"):
        choose_device("cuda:0", "--gpu-id 0")
    for wrong in ("gpu", "cuda:x", "xpu"):
        with pytest.raises(DeviceError, match="not a device"):
            choose_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert training_device("auto") == training_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda") == torch.device("cuda:0")  # torch.cuda.set_device refuses `cuda` without a number
    assert choose_device("cuda:1") == torch.device("cuda:1") == training_device("cuda:1")
    with pytest.raises(DeviceError, match="0 to 1"):
        choose_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device("cuda") == torch.device("cuda:0")  # LOCAL_RANK is left over in the shell
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")  # torchrun's word counts more than the config's
    assert training_device("cuda") == training_device("cuda:0") == torch.device("cuda:1")
    assert training_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 2: the GPUs here are 0 to 1; .*fewer processes"):
        training_device("cuda")


# -- the log ------------------------------------------------------------------------------------------------------


def test_a_log_is_taken_up_at_its_checkpoint(tmp_path):
    log = MetricLog(tmp_path)
    for step in range(1, 6):
        log.write(step, loss=float(step), lr=0.1)
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    log = MetricLog(tmp_path, from_step=3)
    log.write(4, loss=40.0, lr=0.2)
    log.close()
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path / "log.jsonl")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "loss": 1.0, "lr": 0.1}


def test_tensorboard_keeps_the_step_of_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, values in ((0, (1, 2, 3, 4)), (2, (3, 4))):
        log = MetricLog(tmp_path, from_step=start)
        for step in values:
            log.write(step, loss=float(step + 10 * start))
        log.close()
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in scalars] == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_the_plot(tmp_path):
    from PIL import Image

    from minigpt4.common.logger import plot_log

    log = MetricLog(tmp_path)
    plot_log(tmp_path / "log.jsonl", tmp_path / "loss.png")  # nothing to draw yet
    assert not (tmp_path / "loss.png").exists()
    for step in range(1, 20):
        log.write(step, loss=5 / step, lr=1e-3)
    log.close()
    plot_log(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").width > 600


def test_changes_of_a_config_are_told_by_key():
    before = {"run": {"init_lr": 1e-4, "seed": 1}, "model": {"ckpt": None}}
    now = {"run": {"init_lr": 3e-5, "seed": 1}, "model": {"ckpt": None, "new": 2}}
    assert changes(before, now) == ["run.init_lr: 0.0001 -> 3e-05", "model.new: None -> 2"]
