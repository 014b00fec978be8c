"""What the end-to-end tests start from: see tests/training.py."""

import signal
from pathlib import Path

import pytest
from training import Child, lay_config, lay_data, lay_model


@pytest.fixture(scope="session")
def published(golden_dir, tmp_path_factory) -> dict:
    return lay_model(golden_dir, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return lay_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def write_config(published, data, tmp_path):
    """write_config("stage1", model={...}, run={...}) -> path of a YAML; its output_dir is tmp_path/<name>."""
    return lambda *arguments, **changes: lay_config(tmp_path, published, data, *arguments, **changes)


@pytest.fixture
def child(tmp_path):
    """child(config, "run.seed=1") -> a running Child; none outlives the test."""
    children: list[Child] = []

    def start(config: str, *options: str) -> Child:
        children.append(Child(config, tmp_path / f"child_{len(children)}.txt", *options))
        return children[-1]

    yield start
    for one in children:
        if one.code is None:
            one.signal(signal.SIGKILL)
