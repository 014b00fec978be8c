"""A run that goes on: the config decides from the next step on, and nothing is replaced that it went on from."""

import pytest
import torch
from loops import GivenTask, Slope

from minigpt4.common.checkpoint import find_latest, resume_path
from minigpt4.common.errors import CheckpointError
from minigpt4.common.schema import BuildInfo, DatasetConfig
from minigpt4.datasets.stream import MixedLoader, SampleStream, make_loader
from minigpt4.runners import runner as runner_module

TASK = [{"x": 1.0}]


@pytest.fixture
def said(monkeypatch, caplog):
    monkeypatch.setattr(runner_module.log, "propagate", True)
    caplog.set_level("INFO", "minigpt4")
    return caplog


class Matrix(Slope):
    """Its weight decays: parameters of one dimension do not."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1, 1))

    def forward(self, batch):
        return {"loss": (self.w * batch["x"]).sum()}


def test_the_optimizer_takes_the_configs_values(run, tmp_path, said):
    run(Matrix(), GivenTask(TASK), weight_decay=0.05)
    done = run(Matrix(), GivenTask(TASK), weight_decay=0.9, max_epoch=2)
    assert [group["weight_decay"] for group in done.optimizer.param_groups] == [0.9, 0.0]
    assert "the config has changed since: run.weight_decay: 0.05 -> 0.9" in said.text


@pytest.mark.parametrize(("name", "stored"), [("betas", (0.5, 0.5)), ("eps", 1.0), ("amsgrad", True)])
def test_a_checkpoint_brings_the_moments_alone(run, tmp_path, name, stored):
    """Its other values are of the program that wrote it."""
    run(Matrix(), GivenTask(TASK))
    sidecar = resume_path(tmp_path / "out/checkpoint_0.pth")
    resume = torch.load(sidecar, weights_only=True)
    for group in resume["optimizer"]["param_groups"]:
        group[name] = stored
    torch.save(resume, sidecar)
    done = run(Matrix(), GivenTask(TASK), max_epoch=2)
    own = torch.optim.AdamW([torch.zeros(1)]).param_groups[0][name]
    assert [group[name] for group in done.optimizer.param_groups] == [own, own]
    assert done.optimizer.state[done.bare_model.w]["step"] == 6


def test_the_seed_is_the_configs(run):
    class Noted(GivenTask):
        def train_step(self, model, batch):
            self.drawn = torch.rand(()).item()
            return super().train_step(model, batch)

    tasks = [Noted(TASK) for _ in range(4)]
    run(Slope(), tasks[0], iters_per_epoch=1)
    run(Slope(), tasks[1], iters_per_epoch=1, max_epoch=2)  # goes on with the checkpoint's random numbers
    run(Slope(), tasks[2], iters_per_epoch=1, max_epoch=3, seed=7)
    run(Slope(), tasks[3], "other", iters_per_epoch=1, seed=7)
    assert tasks[0].drawn != tasks[1].drawn != tasks[2].drawn == tasks[3].drawn


# -- datasets -----------------------------------------------------------------------------------------------------


class Numbers:
    def iterate(self, stream, streams, seed, state):
        number = state.get("number", 0)
        while True:
            number += 1
            yield {"number": number}, str(number), number

    def decode(self, raw):
        return {"image": torch.full((1,), float(raw)), "text_input": str(raw)}


class Mixed(GivenTask):
    def __init__(self, ratios):
        super().__init__([])
        self.ratios, self.seen = ratios, []

    def build_loader(self, rank, world_size, seed, drawn=0):
        loaders = {name: make_loader(SampleStream(Numbers(), name, seed), 1, 0) for name in self.ratios}
        return MixedLoader(loaders, self.ratios, seed, rank)

    def train_step(self, model, batch):
        self.seen.append((batch["dataset"], int(batch["image"])))
        return super().train_step(model, {"x": batch["image"].mean()})


def test_a_dataset_is_taken_away_and_another_added(run, tmp_path, said):
    datasets = {name: DatasetConfig(build_info=BuildInfo(storage=name)) for name in "abc"}
    first, second = Mixed({"a": 1.0, "b": 1.0}), Mixed({"a": 1.0, "c": 1.0})
    run(Slope(), first, datasets={n: datasets[n] for n in "ab"}, iters_per_epoch=8)
    done = run(Slope(), second, datasets={n: datasets[n] for n in "ac"}, iters_per_epoch=8, max_epoch=2)
    assert {name for name, _ in first.seen} == {"a", "b"} and {name for name, _ in second.seen} == {"a", "c"}
    for name, goes_on_after in (("a", [s for s in first.seen if s[0] == "a"][-1][1]), ("c", 0)):
        mine = [number for dataset, number in second.seen if dataset == name]
        assert mine == list(range(goes_on_after + 1, goes_on_after + 1 + len(mine)))
    assert set(done.monitor.read) == {"a", "c"} and "samples of b" not in done.monitor.summary()
    state = torch.load(resume_path(find_latest(tmp_path / "out")[0]), weights_only=True)["ranks"][0]
    assert set(state["loader"]["loaders"]) == {"a", "c"}
    assert "changed since: datasets.b: removed\n" in said.text and "since: datasets.c: added\n" in said.text


def test_a_dataset_that_is_no_longer_drawn(run):
    """sample_ratio 0: it is in the config, and no loader is made of it."""
    run(Slope(), Mixed({"a": 1.0, "b": 1.0}), iters_per_epoch=8)
    last = Mixed({"a": 1.0})
    assert run(Slope(), last, iters_per_epoch=8, max_epoch=2).step == 16
    assert {name for name, _ in last.seen} == {"a"}


class Judged(GivenTask):
    def __init__(self, losses):
        super().__init__(TASK)
        self.losses = iter(losses)

    def validation_batches(self, rank, world_size):
        yield {"text_input": ["a"], "loss": next(self.losses)}

    def train_step(self, model, batch):
        return torch.tensor(batch["loss"]) if "loss" in batch else super().train_step(model, batch)


@pytest.mark.parametrize(("storage", "samples", "best"), [("x", 512, 1.0), ("y", 512, 2.0), ("x", 5, 2.0)])
def test_a_best_loss_on_other_samples_does_not_count(run, storage, samples, best):
    held_out = {n: {"a": DatasetConfig(valid_info=BuildInfo(storage=n))} for n in ("x", storage)}
    run(Slope(), Judged([1.0]), datasets=held_out["x"], early_stop=1)
    losses = [2.0] if best == 1.0 else [3.0, 2.0]  # of the weights that it goes on with, and at the end
    done = run(Slope(), Judged(losses), datasets=held_out[storage], valid_samples=samples, max_epoch=2, early_stop=1)
    assert done.validation.best == best


# -- runs that have finished --------------------------------------------------------------------------------------


def test_a_finished_run_says_so_alone(run, said):
    run(Slope(), GivenTask(TASK))
    said.clear()
    assert run(Slope(), GivenTask(TASK)).step == 3
    assert "this run has finished after step 3: " in said.text and "raise run.max_epoch to go on" in said.text
    assert "going on" not in said.text


def test_longer_epochs_replace_no_checkpoint(run, tmp_path):
    def steps():
        return {p.name: torch.load(p, weights_only=True)["step"] for p in (tmp_path / "out").glob("*.pth")}

    run(Slope(), GivenTask(TASK), iters_per_epoch=2, max_epoch=2)
    run(Slope(), GivenTask(TASK), iters_per_epoch=8)
    assert steps() == {"checkpoint_0.pth": 2, "checkpoint_1.pth": 4, "checkpoint_2.pth": 8}
    (tmp_path / "out/checkpoint_2.pth").write_bytes(b"damaged")
    run(Slope(), GivenTask(TASK), iters_per_epoch=8)
    assert steps() == {"checkpoint_0.pth": 2, "checkpoint_1.pth": 4, "checkpoint_2.pth": 8}


def test_an_early_stop_goes_on_with_more_patience(run, said):
    keys = dict(datasets={"a": DatasetConfig(valid_info=BuildInfo(storage="x"))}, iters_per_epoch=1, max_epoch=4)
    assert run(Slope(), Judged([1.0, 2.0]), early_stop=1, **keys).step == 2
    assert run(Slope(), Judged([]), early_stop=1, **keys).step == 2
    assert "this run has finished after step 2: " in said.text and "raise run.early_stop to go on" in said.text
    assert run(Slope(), Judged([3.0, 0.5]), early_stop=3, **keys).validation.best_step == 4


def test_another_optimizer_begins_anew(run, tmp_path):
    """Its moments are others: AdamW's would be taken over by RAdam without a word, and break RMSprop."""
    run(Slope(), GivenTask([{"x": 1.0}]))
    with pytest.raises(
        CheckpointError, match=r"run\.optimizer: sgd, but .* is of a run with adamw; write another run\.o"
    ):
        run(Slope(), GivenTask([{"x": 1.0}]), max_epoch=2, optimizer="sgd")
