"""Two processes against one: the same losses, whether the LLM is whole in each or parted between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from soak import rows, start, wait_all, weights

PROJECT = Path(__file__).parents[2]
TEXTS = ["a small dog", "a house", "a house", "a small dog"]  # as many tokens in each half


class Halves:
    """Four samples, all for one process or two for each, with images that change from step to step."""

    def __init__(self, rank: int, world_size: int, size: int):
        self.part, self.size, self.step = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size), size, 0

    def __iter__(self):
        while True:
            self.step += 1
            image = torch.randn(4, 3, self.size, self.size, generator=torch.Generator().manual_seed(self.step))
            yield "given", {"image": image[self.part], "text_input": TEXTS[self.part], "bad": [], "hopeless": False}

    def state_dict(self):
        return {"drawn": self.step, "places": {}}


@pytest.fixture(scope="module")
def trained(published, data, tmp_path_factory):
    """trained("fsdp", 2) -> losses and weights of a run in so many processes."""
    from training import lay_config

    from minigpt4.tasks import ImageTextPretrain

    folder = tmp_path_factory.mktemp("processes")

    def given(monkeypatch):
        monkeypatch.setattr(
            ImageTextPretrain, "build_loader",
            lambda self, rank, world, seed, before=None: Halves(rank, world, published["image_size"]),
        )  # fmt: skip

    def train(parallel: str, world: int):
        name = f"{parallel}_{world}"
        run = {"parallel": parallel, "batch_size_train": 4 // world, "sample_images": [str(data / "align/image/0.jpg")]}
        config = lay_config(folder, published, data, "stage1", name, run=run)  # stage 2 draws prompts by rank
        with pytest.MonkeyPatch.context() as monkeypatch:
            given(monkeypatch)
            codes = wait_all(start(config, folder, world), 60)
        assert codes == [0] * world, (folder / "said_0.txt").read_text() + (
            folder / f"said_{world - 1}.txt"
        ).read_text()
        return [row[1] for row in rows(folder / name)], weights(folder / name)

    return train


def test_two_processes_give_the_losses_of_one(trained):
    losses, weight = trained("ddp", 1)
    assert losses[-1] < losses[0] - 0.5
    for parallel in ("ddp", "fsdp"):
        both_losses, both = trained(parallel, 2)
        assert both_losses == pytest.approx(losses, abs=1e-5)
        assert (both["llama_proj.weight"] - weight["llama_proj.weight"]).abs().max() < 1e-5


DIES = """
import sys
import train
from minigpt4.common.errors import DataError
from minigpt4.datasets import shards
from minigpt4.tasks import ImageTextPretrain

step, seen, shards.BLOCK = ImageTextPretrain.train_step, [], 30

def train_step(self, model, batch):
    seen.append(1)
    if len(seen) == 3 and model.process_group.rank() == 1:
        raise DataError("the disk of this machine is gone")
    return step(self, model, batch)

ImageTextPretrain.train_step = train_step
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_process_that_dies_ends_the_others(write_config, tmp_path):
    """Within a minute, and torchrun's last word is the reason."""
    (tmp_path / "dies.py").write_text(DIES)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(tmp_path / "dies.py"), "--cfg-path", write_config("stage1", run={"save_every_steps": 1}),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    run = subprocess.Popen(command, env=environment, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    _, said = run.communicate(timeout=90)
    assert run.returncode == 1
    cause = said[said.index("Root Cause") :]
    assert "rank      : 1" in cause and "the disk of this machine is gone" in cause
    assert sum(line == "error: the disk of this machine is gone" for line in said.splitlines()) == 1
    assert len(rows(tmp_path / "run")) == 2
