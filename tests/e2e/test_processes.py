"""Two processes against one: the same losses, whether the LLM is whole in each or parted between them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made import good, write_shard
from soak import free_port, rows, weights

PROJECT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
GIVEN = """
import os
import sys
import torch
import train
from accelerate import Accelerator
from minigpt4.tasks import ImageTextPretrain

TEXTS = ["a small dog", "a house", "a house", "a small dog"]  # as many tokens in each half

class Halves:
    # four samples, all for one process or two for each, with images that change from step to step
    def __init__(self, rank, world_size, size):
        self.part, self.size, self.step = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size), size, 0

    def __iter__(self):
        while True:
            self.step += 1
            image = torch.randn(4, 3, self.size, self.size, generator=torch.Generator().manual_seed(self.step))
            yield "given", {"image": image[self.part], "text_input": TEXTS[self.part], "bad": [], "hopeless": False}

    def state_dict(self):
        return {"drawn": self.step}

ImageTextPretrain.build_loader = lambda self, rank, world, seed, drawn=0: Halves(
    rank, world, self.config.model.image_size
)

if os.environ.get("AS_ON_GPUS"):
    # accelerate takes gloo's processes for GPUs: it then refuses a model that holds sharded parameters.
    Accelerator.multi_device = property(lambda self: self.use_distributed)
    wrap = torch.nn.parallel.DistributedDataParallel.__init__
    torch.nn.parallel.DistributedDataParallel.__init__ = (
        lambda self, module, device_ids, output_device, **keys: wrap(self, module, **keys)
    )
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture
def trained(write_config, data, tmp_path):
    """trained("fsdp", 2) -> losses and weights of a run in so many processes, with a picture described on the way."""

    def train(parallel: str, world: int):
        name, port = f"{parallel}_{world}", str(free_port())
        (tmp_path / "given.py").write_text(GIVEN)
        run = {"parallel": parallel, "batch_size_train": 4 // world, "sample_images": [str(data / "align/image/0.jpg")]}
        config = write_config("stage1", name, run=run)  # stage 2 draws prompts by rank
        runs = []
        for rank in map(str, range(world)):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            environment = {**os.environ, **ONE_THREAD, **(place if world > 1 else {})}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            if parallel == "fsdp":
                environment |= {"AS_ON_GPUS": "1"}
            command = [sys.executable, str(tmp_path / "given.py"), "--cfg-path", config]
            runs.append(subprocess.Popen(command, env=environment, cwd=PROJECT, stderr=subprocess.PIPE, text=True))
        said = [run.communicate(timeout=120)[1] for run in runs]
        assert [run.returncode for run in runs] == [0] * world, "".join(said)
        return [row[1] for row in rows(tmp_path / name)], weights(tmp_path / name)

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
    environment = {**os.environ, **ONE_THREAD}
    run = subprocess.Popen(command, env=environment, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    _, said = run.communicate(timeout=90)
    assert run.returncode == 1
    cause = said[said.index("Root Cause") :]
    assert "rank      : 1" in cause and "the disk of this machine is gone" in cause
    assert sum(line == "error: the disk of this machine is gone" for line in said.splitlines()) == 1
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.timeout(120)
def test_ctrl_c_ends_the_processes_of_a_data_check(tmp_path):
    """`minigpt4 data check` of a shard that never comes to an end beside one that is whole."""
    write_shard(tmp_path / "0.tar", [good("one two three", 1), good("four", 2), good("five six", 3)])
    command = [sys.executable, "-m", "minigpt4.cli", "data", "check", "0.tar"]
    slow = "pipe:echo $$ > child; exec sleep 50"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        run = subprocess.Popen(
            [*command, slow, "--jobs", "2"], stdout=out, stderr=err, start_new_session=True, cwd=tmp_path,
            env=os.environ | ONE_THREAD,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        )  # fmt: skip
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.02)
    time.sleep(1)  # the other shard has been read
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(15) == 130, (tmp_path / "err").read_text()
    assert (tmp_path / "err").read_text().strip() == "stopped by the user"
