"""What a run can do without: it is done after the checkpoint, and its failures are warnings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from loops import GivenTask, Slope
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from minigpt4.common.errors import DataError, UserError
from minigpt4.common.logger import MetricLog, read_log
from minigpt4.common.schema import BuildInfo, Config, DatasetConfig, ModelConfig, RunConfig
from minigpt4.runners import checkpointing, progress
from minigpt4.runners import runner as runner_module
from minigpt4.tasks import ImageTextPretrain

HELD_OUT = {"given": DatasetConfig(valid_info=BuildInfo(storage="x"))}


class Watched(GivenTask):
    """Answers about a picture and validates; `fail` may be called by either."""

    def __init__(self, batches=({"x": 1.0},), fail_validation=lambda: None, fail_samples=lambda: None):
        super().__init__(list(batches))
        self.fail_validation, self.fail_samples = fail_validation, fail_samples

    def validation_batches(self, rank, world_size):
        self.fail_validation()
        yield {"text_input": ["a"], "x": 2.0}

    def sample_answers(self, model, max_new_tokens=60):
        if max_new_tokens > 1:  # the trial before the first step
            self.fail_samples()
        return [{"image": "a.jpg", "answer": "a cat"}]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(runner_module.log, "propagate", True)
    return caplog


FAULTS = {  # what is broken, its error, and the warning
    "plot": (progress, "plot_log", ImportError("no backend"), "loss.png: ImportError: no backend"),
    "TensorBoard does not start": (SummaryWriter, "__init__", OSError("no"), "TensorBoard: OSError: no"),
    "TensorBoard": (SummaryWriter, "add_scalar", OSError("full"), "TensorBoard: OSError: full"),
    "tracker does not start": (Accelerator, "init_trackers", OSError("no key"), "run.report_to: OSError: no key"),
    "tracker": (Accelerator, "log", ConnectionError("gone"), "run.report_to: ConnectionError: gone"),
    "tracker does not end": (Accelerator, "end_training", OSError("gone"), "run.report_to: OSError: gone"),
    "old checkpoints": (
        checkpointing.ckpt,
        "prune_checkpoints",
        OSError("not yours"),
        "old checkpoints: OSError: not yo",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_outlives(run, tmp_path, monkeypatch, warnings, fault):
    owner, name, error, said = FAULTS[fault]
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_, **__: None)
    monkeypatch.setattr(owner, name, failing(error))
    monkeypatch.setattr(progress, "PLOT_EVERY", 0)
    assert run(Slope(), Watched(), iters_per_epoch=6, report_to=["wandb"] if "tracker" in fault else []).step == 6
    assert (tmp_path / "out/checkpoint_0.pth").exists()
    assert warnings.text.count(said) == 1  # not again at every step
    assert [row["step"] for row in read_log(tmp_path / "out/log.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["log.jsonl", "samples.jsonl"])
def test_a_run_outlives_a_file_that_cannot_be_written(run, tmp_path, warnings, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    run(Slope(), Watched(), sample_images=["a.jpg"], max_epoch=2)
    assert (tmp_path / "out/checkpoint_1.pth").exists()
    assert warnings.text.count(f"{name}: IsADirectoryError: ") == 1


def test_a_run_outlives_validation_and_samples(run, tmp_path, warnings):
    """The model is in training mode again, and a validation that works the next time counts."""
    modes, times = [], iter(range(9))
    model = Slope()

    def first_fails():
        modes.append(model.training)
        if next(times) == 0:
            raise DataError("datasets.given.valid_info: no sample can be read")

    task = Watched(fail_validation=first_fails, fail_samples=failing(MemoryError("picture")))
    done = run(model, task, max_epoch=2, datasets=HELD_OUT, sample_images=["a.jpg"], early_stop=1)
    assert (done.step, done.validation.best_step, model.training) == (6, 6, True)
    assert "validation: DataError: datasets.given.valid_info: no sample can be read; training goes on" in warnings.text
    assert "run.sample_images: MemoryError: picture; training goes on without" in warnings.text
    assert [row["step"] for row in read_log(tmp_path / "out/log.jsonl") if "valid_loss" in row] == [6]


@pytest.mark.parametrize("where", ["fail_validation", "fail_samples"])
def test_the_checkpoint_is_written_first(run, tmp_path, where):
    """Even where the process does not live on."""
    with pytest.raises(SystemExit):
        run(Slope(), Watched(**{where: failing(SystemExit(9))}), datasets=HELD_OUT, sample_images=["a.jpg"])
    assert torch.load(tmp_path / "out/checkpoint_0.pth", weights_only=True)["step"] == 3


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "inline"])
def test_plots_need_no_backend_of_the_environment(tmp_path, backend):
    MetricLog(tmp_path).write(1, loss=1.0, lr=0.1)
    code = "from pathlib import Path; from minigpt4.common.logger import plot_log as p; p(Path(%r), Path(%r))"
    files = tuple(str(tmp_path / name) for name in ("log.jsonl", "loss.png"))
    subprocess.run([sys.executable, "-c", code % files], check=True, env={**os.environ, "MPLBACKEND": backend})
    assert Image.open(tmp_path / "loss.png").width > 600


# -- what is refused before the first step ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "question", "said"),
    [
        ("notes.txt", "What?", r"run\.sample_images, run\.sample_question: .*notes\.txt: not an image"),
        ("a.png", "What is this? " * 200, r"run\.sample_question: the question is too long"),
        ("a.png", " ", r"run\.sample_question: the question is empty"),
    ],
)
def test_samples_are_tried_first(run, make_model, tmp_path, image, question, said):
    (tmp_path / "notes.txt").write_text("some notes")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    keys = {"sample_images": [str(tmp_path / image)], "sample_question": question}
    task, model = GivenTask([]), make_model()
    task.sample_answers = ImageTextPretrain(
        Config(model=ModelConfig(image_size=56), run=RunConfig(**keys))
    ).sample_answers
    with pytest.raises(UserError, match=said):
        run(model, task, **keys)
    assert task.steps == 0 and model.training
    assert not list(Path(tmp_path / "out").glob("*.pth"))
