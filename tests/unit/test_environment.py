"""What is left in the shell does not change a run: the config and torchrun decide."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from loops import GivenTask, Slope

import train
from minigpt4.common import dist_utils
from minigpt4.runners import runner as runner_module


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate reads most of its variables once in a process."""
    reset = lambda: (AcceleratorState._reset_state(True), GradientState._reset_state())  # noqa: E731
    reset()
    yield
    reset()


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(runner_module.log, "propagate", True)
    return caplog


def test_accumulation_is_the_configs(run, monkeypatch, warnings):
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: steps.append(1) or step(*a, **k))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run(Slope(), GivenTask([{"x": 1.0}]), iters_per_epoch=4)
    assert len(steps) == 4
    assert "not used: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4; the config and torchrun decide" in warnings.text


@pytest.mark.parametrize(
    ("name", "value", "see", "wanted"),
    [
        ("ACCELERATE_TORCH_DEVICE", "meta", lambda a: a.device.type, "cpu"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", lambda a: a.state.dynamo_plugin.backend.value, "NO"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", lambda a: a.distributed_type.value, "NO"),
    ],
)
def test_accelerates_variables_are_not_used(run, monkeypatch, name, value, see, wanted):
    monkeypatch.setenv(name, value)
    assert see(run(Slope(), GivenTask([{"x": 1.0}])).accelerator) == wanted


@pytest.mark.parametrize(
    "left",
    [{"LOCAL_RANK": "1"}, {"WORLD_SIZE": "2"}, {"PMI_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}],
)
def test_a_place_among_processes_that_no_launcher_gave(run, monkeypatch, left):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert (dist_utils.rank(), dist_utils.world_size()) == (0, 1)
    done = run(Slope(), GivenTask([{"x": 1.0}]))
    assert (done.rank, done.world_size, done.step) == (0, 1, 3)


def test_a_launcher_that_gives_the_whole_place(monkeypatch):
    for name in dist_utils.PLACE:
        monkeypatch.setenv(name, "1")
    assert dist_utils.rank() == 1
    dist_utils.config_decides()
    assert os.environ["RANK"] == "1"


def test_nobody_is_silent_without_torchrun(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "c.yaml").write_text("run: {max_epochs: 1}")
    assert train.main(["--cfg-path", str(tmp_path / "c.yaml")]) == 1
    assert "run.max_epochs: unknown key; did you mean 'max_epoch'?" in capsys.readouterr().err


def test_deterministic_is_the_configs(run, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    run(Slope(), GivenTask([{"x": 1.0}]), deterministic=True)
    torch.use_deterministic_algorithms(False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
