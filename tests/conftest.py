"""Shared fixtures: no network, no GPU, one thread, a tiny model with the original's weights."""

import gc
import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "100",  # help texts and pages are wrapped alike in pytest-xdist's processes
}

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
GOLDEN = Path(__file__).parent / "golden" / "data" / "a"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden():
    """golden("stage1") -> the arrays of stage1.npz by name."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as archive:
            return {k: archive[k] for k in archive.files}

    return read


@pytest.fixture(scope="session")
def meta() -> dict:
    from tests.golden_set import read_meta

    return read_meta(GOLDEN)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported with the tests stays, a million objects: the garbage collector need not search them."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.fixture(autouse=True)
def same_sys_path(monkeypatch):
    """Loading a config adds its folder to sys.path. With hundreds of them each import would look through all."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def lay_published(tmp_path_factory):
    """lay_published(folder) -> keywords for ModelConfig: what `write_published_files` writes of the golden set, copied
    to `folder`."""
    from tests.golden_set import write_published_files

    written = tmp_path_factory.mktemp("published")
    keys = write_published_files(GOLDEN, written)

    def lay(folder: Path) -> dict:
        shutil.copytree(written, folder, dirs_exist_ok=True)
        return {k: v.replace(str(written), str(folder)) if isinstance(v, str) else v for k, v in keys.items()}

    return lay


@pytest.fixture
def make_model(lay_published, tmp_path):
    """make_model(max_txt_len=48, ...) -> a fresh tiny MiniGPT4 with the golden weights."""
    from minigpt4.common.schema import ModelConfig
    from minigpt4.models.mini_gpt4 import MiniGPT4

    return lambda **changes: MiniGPT4(ModelConfig(**{**lay_published(tmp_path / "published"), **changes}))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """One tiny MiniGPT4 with the golden weights, for tests that do not change it."""
    from tests.golden_set import golden_model

    return golden_model(GOLDEN, tmp_path_factory.mktemp("published")).eval()


@pytest.fixture
def no_plot(monkeypatch):
    """Runs draw no loss.png, which takes longer than the steps of a tiny model."""
    from minigpt4.runners import progress

    monkeypatch.setattr(progress, "plot_log", lambda *_: None)


@pytest.fixture
def run(tmp_path, no_plot):
    """run(model, task, batch_size_train=2, ...) -> its Runner after training."""
    from minigpt4.common.schema import Config, RunConfig
    from minigpt4.runners import runner as runner_module

    def run(model, task, folder="out", datasets=None, **keys):
        keys = {"max_epoch": 1, "iters_per_epoch": 3, "log_freq": 1, "amp": False, "device": "cpu", **keys}
        config = Config(
            datasets=datasets or {}, run=RunConfig(output_dir=str(tmp_path / folder), num_workers=0, **keys)
        )
        runner = runner_module.Runner(config, task, model, torch.device("cpu"))
        runner.train()
        return runner

    return run
