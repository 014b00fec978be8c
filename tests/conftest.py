"""Shared fixtures: no network, no GPU, one thread, a tiny model with the original's weights."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
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
    from minigpt4.tools.golden import read_meta

    return read_meta(GOLDEN)


@pytest.fixture
def make_model(tmp_path):
    """make_model(max_txt_len=48, ...) -> a fresh tiny MiniGPT4 with the golden weights."""
    from minigpt4.tools.golden import golden_model

    return lambda **changes: golden_model(GOLDEN, tmp_path / "published", **changes)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """One tiny MiniGPT4 with the golden weights, for tests that do not change it."""
    from minigpt4.tools.golden import golden_model

    return golden_model(GOLDEN, tmp_path_factory.mktemp("published")).eval()
