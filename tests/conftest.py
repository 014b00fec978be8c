"""Shared fixtures: no network, no GPU, one thread, a tiny model with the original's weights."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "100",  # help texts and pages are wrapped alike in pytest-xdist's processes
}

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
    from minigpt4.checkup.golden import read_meta

    return read_meta(GOLDEN)


@pytest.fixture
def make_model(tmp_path):
    """make_model(max_txt_len=48, ...) -> a fresh tiny MiniGPT4 with the golden weights."""
    from minigpt4.checkup.golden import golden_model

    return lambda **changes: golden_model(GOLDEN, tmp_path / "published", **changes)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """One tiny MiniGPT4 with the golden weights, for tests that do not change it."""
    from minigpt4.checkup.golden import golden_model

    return golden_model(GOLDEN, tmp_path_factory.mktemp("published")).eval()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(model, task, batch_size_train=2, ...) -> its Runner after training."""
    from minigpt4.common.schema import Config, RunConfig
    from minigpt4.runners import progress
    from minigpt4.runners import runner as runner_module

    monkeypatch.setattr(progress, "plot_log", lambda *_: None)

    def run(model, task, folder="out", datasets=None, **keys):
        keys = {"max_epoch": 1, "iters_per_epoch": 3, "log_freq": 1, "amp": False, "device": "cpu", **keys}
        config = Config(
            datasets=datasets or {}, run=RunConfig(output_dir=str(tmp_path / folder), num_workers=0, **keys)
        )
        runner = runner_module.Runner(config, task, model, torch.device("cpu"))
        runner.train()
        return runner

    return run
