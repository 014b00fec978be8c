"""Training from the command's entry point on made data: what it writes, how it stops, how it goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

import train
from minigpt4 import tasks
from minigpt4.common.checkpoint import resume_path
from minigpt4.common.config import load_config
from minigpt4.common.packages import has_cpp_compiler
from minigpt4.datasets import shards
from minigpt4.runners import progress

PROJECT = Path(__file__).parents[2]
STEPS = 12


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Samples are shuffled in blocks of 30: the made shards hold 20 each, and a block is read before the first step."""
    monkeypatch.setattr(shards, "BLOCK", 30)


def main(config: str, *options: str) -> int:
    return train.main(["--cfg-path", config, *(["--options", *options] if options else [])])


def rows(folder: Path) -> list[tuple]:
    """(step, loss, lr) of each line that log.jsonl holds now; a line may be half-written."""
    if not (folder / "log.jsonl").exists():
        return []
    whole = (folder / "log.jsonl").read_text().split("\n")[:-1]
    return [(r["step"], r["loss"], r["lr"]) for r in map(json.loads, whole)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint_1.pth", weights_only=True)["model"]


def same_run(one: Path, other: Path) -> None:
    """Losses, learning rates and final weights are equal, bit by bit."""
    assert [r[0] for r in rows(one)] == list(range(1, STEPS + 1))
    assert rows(one) == rows(other)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and a
    assert all(torch.equal(a[k], b[k]) for k in a)


# -- a whole run ------------------------------------------------------------------------------------------------------


def test_stage_1_then_stage_2(write_config, published, tmp_path, capfd):
    config = write_config("stage1", "one")
    assert main(config) == 0
    one = tmp_path / "one"
    losses = [loss for _, loss, _ in rows(one)]
    assert len(losses) == STEPS
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.5
    assert [lr for *_, lr in rows(one)][:3] == pytest.approx([1e-3, (1e-3 + 2e-2) / 2, 1.933e-2], rel=1e-3)

    board = EventAccumulator(str(one)).Reload()
    assert [e.step for e in board.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [e.value for e in board.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert (one / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (one / "bad_samples.jsonl").exists()

    for epoch in (0, 1):
        data = torch.load(one / f"checkpoint_{epoch}.pth", weights_only=True)
        assert set(data) == {"model", "epoch", "step", "config"}
        assert (data["epoch"], data["step"]) == (epoch, 6 * (epoch + 1))
        assert set(data["model"]) == {"llama_proj.weight", "llama_proj.bias"}
        assert data["config"]["run"]["init_lr"] == 2e-2
        assert data["config"]["model"]["vit_ckpt"] == published["vit_ckpt"]
    said = capfd.readouterr().err
    assert "training 4,160 parameters on cpu x 1" in said
    assert "done in 0:00:0" in said and f"Checkpoint: {one}/checkpoint_1.pth" in said

    # The same command again: nothing to do.
    assert main(config) == 0
    said = capfd.readouterr().err
    assert "this run has finished after step 12" in said and "going on from" not in said

    # Stage 2 goes on from it.
    second = write_config("stage2", "two", model={"ckpt": str(one / "checkpoint_1.pth")})
    model = tasks.build_model(load_config(second).model)
    assert torch.equal(model.llama_proj.weight, weights(one)["llama_proj.weight"])
    assert len(model.prompt_list) == 4
    assert main(second) == 0
    losses = [loss for _, loss, _ in rows(tmp_path / "two")]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert not torch.equal(weights(tmp_path / "two")["llama_proj.weight"], weights(one)["llama_proj.weight"])


@pytest.mark.skipif(not has_cpp_compiler(), reason="nothing is compiled without a C++ compiler")
def test_compiled_layers_learn_the_same(make_model, golden):
    samples = {"image": torch.from_numpy(golden("forward")["image"])[:2], "text_input": ["a house", "two people walk"]}
    model = make_model()
    model.llama_model.get_decoder().layers = model.llama_model.get_decoder().layers[:1]
    model.visual_encoder.blocks = model.visual_encoder.blocks[:1]
    model.image_tokens(samples["image"])

    def gradient():
        model.zero_grad()
        loss = model(samples)["loss"]
        loss.backward()
        return loss.item(), model.llama_proj.weight.grad.clone()

    loss, plain = gradient()
    counters.clear()
    model.compile_layers()
    assert gradient()[0] == pytest.approx(loss, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert torch.allclose(gradient()[1], plain, rtol=1e-3, atol=1e-5)
    samples["text_input"] = ["a small dog is sitting on the grass", "the river near a mountain"]
    gradient()
    assert counters["stats"]["unique_graphs"] == 2, "compiled anew for another length"


# -- stopping and going on --------------------------------------------------------------------------------------------

CASES = {
    "two datasets": ("stage1", {}, {"num_workers": 0}),
    "two datasets, two workers": ("stage1", {}, {"num_workers": 2}),
    "prompts drawn by chance": ("stage2", {}, {"num_workers": 0, "accum_grad_iters": 2}),
    "a trained Q-Former with dropout": ("stage2", {"freeze_qformer": False}, {"num_workers": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_twice_it_ends_as_if_it_had_not_been(write_config, child, tmp_path, case, monkeypatch):
    monkeypatch.setattr(progress, "plot_log", lambda *_: None)  # half of the time of so short a run
    stage, model, run = CASES[case]
    run = run | {"save_every_steps": 2, "keep_last": 2}
    assert main(write_config(stage, "whole", model, run)) == 0
    config = write_config(stage, "killed", model, run)
    folder = tmp_path / "killed"
    for stop in (random.randint(3, 5), random.randint(6, 10)):  # wherever it is hit, the end must be the same
        one = child(config)
        one.wait_for(lambda stop=stop: len(rows(folder)) >= stop)
        assert one.signal(signal.SIGKILL) == -signal.SIGKILL
        assert not (folder / "checkpoint_1.pth").exists()
    assert main(config) == 0  # at once: the dead run's workers hold no lock
    same_run(folder, tmp_path / "whole")
    assert len(list(folder.glob("checkpoint_step_*.pth"))) == 2
    if not model.get("freeze_qformer", True):
        names = set(weights(folder))
        assert {"query_tokens", "llama_proj.bias", "Qformer.bert.embeddings.LayerNorm.weight"} <= names
        assert "Qformer.bert.encoder.layer.0.attention.self.query.weight" in names
        assert not any(n.startswith(("visual_encoder", "ln_vision", "llama_model")) for n in names)


def test_a_signal_saves_first(write_config, child, tmp_path):
    """SIGTERM to the whole process group, loader workers and all, as torchrun and Ctrl-C send it."""
    run = {"num_workers": 2}
    assert main(write_config("stage1", "whole", run=run)) == 0
    config = write_config("stage1", "stopped", run=run)
    folder = tmp_path / "stopped"
    one = child(config)
    one.wait_for(lambda: len(rows(folder)) >= 3)
    assert one.signal(signal.SIGTERM, group=True) == 128 + signal.SIGTERM
    said = one.log.read_text()
    (saved,) = folder.glob("checkpoint_step_*.pth")
    step = torch.load(saved, weights_only=True)["step"]
    assert f"\nstopped by a signal after step {step}; saved. The same command goes on from there" in said
    assert "Traceback" not in said and "error" not in said
    assert len(EventAccumulator(str(folder)).Reload().Scalars("loss")) == step  # nothing lost on the way out
    assert main(config) == 0
    same_run(folder, tmp_path / "whole")


def test_a_damaged_newest_checkpoint_is_passed_over(write_config, tmp_path, capfd):
    config = write_config("stage1", run={"save_every_steps": 4})
    folder = tmp_path / "run"
    assert main(config) == 0
    before, losses = weights(folder), rows(folder)
    for name, content in (("checkpoint_1.pth", b""), ("checkpoint_step_8.pth", None)):
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    capfd.readouterr()
    assert main(config) == 0
    said = capfd.readouterr().err
    assert said.count("; trying the one before") == 2
    assert f"going on from {folder}/checkpoint_0.pth (step 6)" in said
    assert all(torch.equal(weights(folder)[k], before[k]) for k in before)
    assert rows(folder) == losses

    # One may be named; its other half must be there.
    resume_path(folder / "checkpoint_0.pth").unlink()
    assert main(config, f"run.resume_ckpt_path={folder}/checkpoint_0.pth") == 1
    assert "checkpoint_0.resume.pt: missing or damaged" in capfd.readouterr().err
    assert main(config, f"run.resume_ckpt_path={folder}/checkpoint_step_4.pth", f"run.output_dir={tmp_path}/other") == 0
    assert all(torch.equal(weights(tmp_path / "other")[k], before[k]) for k in before)


def test_one_run_to_a_folder(write_config, child, tmp_path, capfd):
    config = write_config("stage1", run={"num_workers": 1})
    one = child(config)
    one.wait_for(lambda: rows(tmp_path / "run"))
    os.kill(one.pid, signal.SIGSTOP)
    capfd.readouterr()
    assert main(config) == 1
    said = capfd.readouterr().err
    assert f"error: another run is writing into {tmp_path}/run; write another run.output_dir" in said
    os.kill(one.pid, signal.SIGCONT)
    assert one.end() == 0


# -- watching ---------------------------------------------------------------------------------------------------------


def test_validation_and_answers_as_it_runs(write_config, data, tmp_path, capfd):
    """The same numbers again when it goes on from between."""
    picture = str(data / "align/image/0.jpg")
    run = {
        "valid_every_steps": 3,
        "valid_samples": 8,
        "early_stop": 9,
        "sample_images": [picture],
        "deterministic": True,
    }
    options = [f"datasets.cc_sbu_align.valid_info.storage={data}/align"]
    for name in ("one", "two"):
        assert main(write_config("stage2", name, run=run), *options) == 0
        options.append(f"run.resume_ckpt_path={tmp_path}/one/checkpoint_0.pth")
    torch.use_deterministic_algorithms(False)
    logs = [[json.loads(row) for row in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")]
    losses = [[(r["step"], r["valid_loss"]) for r in log if "valid_loss" in r] for log in logs]
    assert [step for step, _ in losses[0]] == [3, 6, 9, 12]
    assert losses[1] == losses[0][2:]
    assert losses[0][-1][1] < losses[0][0][1]
    best = torch.load(tmp_path / "one/checkpoint_best.pth", weights_only=True)
    assert (best["step"], best["valid_loss"]) == min(losses[0], key=lambda pair: pair[1])
    said = [json.loads(line) for line in (tmp_path / "one/samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["image"]) for r in said] == [(6, picture), (12, picture)]
    assert all(isinstance(r["answer"], str) for r in said)
    err = capfd.readouterr().err
    assert "validation loss" in err and f"best validation loss {best['valid_loss']:.4f}" in err


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_config_errors_are_one_message(write_config, tmp_path, capfd):
    config = write_config("stage1", model={"image_sise": 3, "ckpt": "/path/to/ckpt"}, run={"lr_sched": "cosine"})
    assert main(config, "run.device=cpu", "seed") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"error: {config}: 4 problems",
        "  --options 'seed': write it as section.key=value",
        "  model.image_sise: unknown key; did you mean 'image_size'?",
        "  run.lr_sched: 'cosine' is not registered; known: constant_lr, linear_warmup_cosine_lr",
        "  model.ckpt: '/path/to/ckpt' is a placeholder; write a path: Checkpoint with the trained weights, "
        "of this project or of the original; null starts from random weights.",
    ]
    assert not (tmp_path / "run").exists()


def test_a_wrong_data_folder_is_told_before_a_weight_is_read(write_config, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "vit.pth"
    broken.write_bytes(b"no weights")
    config = write_config("stage2", model={"vit_ckpt": str(broken)})
    assert main(config, f"datasets.cc_sbu_align.build_info.storage={tmp_path}/empty") == 1
    said = capfd.readouterr().err
    assert f"  datasets.cc_sbu_align.build_info.storage: {tmp_path}/empty has no filter_cap.json" in said
    assert str(broken) not in said


def test_too_much_bad_data_ends_the_run(write_config, tmp_path, capfd):
    import webdataset as wds

    with wds.TarWriter(str(tmp_path / "bad.tar")) as tar:
        for i in range(40):
            tar.write({"__key__": str(i), "jpg": b"no picture", "json": b'{"caption": "x"}'})
    config = write_config("stage1")
    assert main(config, f"datasets.cc_sbu.build_info.storage={tmp_path}/bad.tar") == 1
    said = capfd.readouterr().err
    assert "error: datasets.cc_sbu: " in said and "samples are bad" in said and "Traceback" not in said
    line = json.loads((tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()[0])
    assert line["dataset"] == "cc_sbu" and f"{tmp_path}/bad.tar:" in line["sample"]


# -- the command itself -----------------------------------------------------------------------------------------------

SPY = '''
"""train.py, which also writes down what each process saw."""
import json, os, sys
import train
from minigpt4.runners.runner import Runner
from minigpt4.tasks import ImageTextPretrain

texts = []
build, end = ImageTextPretrain.build_batch, Runner.train

def build_batch(self, model, samples):
    texts.extend(samples["text_input"])
    return build(self, model, samples)

def run_and_report(self):
    try:
        end(self)
    finally:
        ddp = self.model._get_ddp_logging_data()
        facts = {
            "texts": texts, "step": self.step, "tensors": ddp["num_parameter_tensors"],
            "bytes": ddp["total_parameter_size_bytes"], "backend": ddp["backend_name"],
            "sum": self.bare_model.llama_proj.weight.detach().double().sum().item(),
        }
        with open(sys.argv[3] + f".{self.rank}", "w") as file:
            json.dump(facts, file)

ImageTextPretrain.build_batch, Runner.train = build_batch, run_and_report
sys.exit(train.main(sys.argv[1:3]))
'''


def test_two_processes_under_torchrun(write_config, tmp_path):
    """Stopped by a SIGTERM to torchrun, and gone on to the end; DDP over gloo."""
    config = write_config("stage1", run={"num_workers": 1, "batch_size_train": 2, "iters_per_epoch": 30})
    folder, script = tmp_path / "run", tmp_path / "spy.py"
    script.write_text(SPY)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
        "--cfg-path", config, str(tmp_path / "facts"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}

    def facts():
        return [json.loads((tmp_path / f"facts.{rank}").read_text()) for rank in (0, 1)]

    with (tmp_path / "said.txt").open("w") as said:
        run = subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=said, stderr=said)
        try:
            while len(rows(folder)) < 3:
                assert run.poll() is None, (tmp_path / "said.txt").read_text()
                time.sleep(0.01)
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) != 0
        finally:
            run.kill()
    (saved,) = folder.glob("checkpoint_step_*.pth")
    stopped = torch.load(saved, weights_only=True)["step"]
    one, two = facts()
    assert one["step"] == two["step"] == stopped
    assert one["sum"] == two["sum"]

    # A step more than it has now is enough of going on.
    edited = yaml.safe_load(Path(config).read_text())
    edited["run"] |= {"iters_per_epoch": stopped + 1, "max_epoch": 1}
    Path(config).write_text(yaml.safe_dump(edited))
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"going on from {saved} (step {stopped})" in done.stderr
    assert "training 4,160 parameters on cpu x 2" in done.stderr
    later, later_two = facts()
    assert later["step"] == stopped + 1 and len(later["texts"]) == 2  # one batch of two, each
    assert later["sum"] == later_two["sum"] != one["sum"]

    for a, b in ((one, two), (later, later_two)):
        assert a["backend"] == "gloo"
        assert (a["tensors"], a["bytes"]) == (2, 4 * 4160)  # llama_proj alone is in DDP's buckets
        assert a["texts"] and a["texts"] != b["texts"]
    assert len(set(one["texts"]) - set(two["texts"])) > 0
    assert [r[0] for r in rows(folder)] == list(range(1, stopped + 2))


def test_the_command_itself(write_config):
    config = write_config("stage1", run={"init_lr": "high"})
    done = subprocess.run(
        [sys.executable, "train.py", "--cfg-path", config], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"error: {config}: 1 problem",
        "  run.init_lr: 'high' is a text; it should be a number",
    ]
