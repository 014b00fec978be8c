"""Parity with the original on golden set `a`: every array, and what the checkpoints hold."""

import shutil

import numpy as np
import pytest
import torch

from minigpt4.tools import cli
from minigpt4.tools.parity import compare


@pytest.fixture(scope="module")
def rows(golden_dir):
    return list(compare(golden_dir))


def test_every_array_is_compared(rows, golden, golden_dir):
    made_with = {"image", "images", "chat_image", "raw_uint8", "train_crop_ijhw"}  # inputs, or seen in train_out
    compared = {(row.file, row.array) for row in rows}
    for file in golden_dir.glob("*.npz"):
        if file.stem != "weights":
            assert {(file.stem, array) for array in golden(file.stem) if array not in made_with} <= compared


def test_every_array_holds(rows):
    assert len(rows) > 50
    assert [row for row in rows if not row.holds(1e-4)] == []


def test_parity_command_tells_a_wrong_weight(golden_dir, golden, tmp_path, capsys):
    broken = tmp_path / "set"
    shutil.copytree(golden_dir, broken)
    weights = golden("weights")
    weights["ln_vision.bias"] = weights["ln_vision.bias"] + 1e-2
    np.savez(broken / "weights.npz", **weights)
    assert cli.main(["parity", str(broken)]) == 1
    out = capsys.readouterr().out
    assert "ln_vision_out" in out and "PAST TOLERANCE" in out
    vit = next(line for line in out.splitlines() if "vit_out" in line)
    assert "PAST" not in vit


def test_opens_the_originals_checkpoint_and_writes_its_names(make_model, golden, golden_dir):
    model = make_model()
    model.load_trained(str(golden_dir / "checkpoint_1.pth"))
    assert torch.equal(model.llama_proj.weight, torch.from_numpy(golden("train_run")["final_llama_proj_weight"]))
    assert set(model.trained_state()) == {"llama_proj.weight", "llama_proj.bias"}


def test_a_trained_qformer_keeps_the_published_names(make_model, golden):
    trained = make_model(freeze_qformer=False).trained_state()
    published = {k for k in golden("weights") if k.startswith(("Qformer", "query_tokens", "llama_proj"))}
    assert set(trained) == {k for k in published if not k.endswith("position_ids")}
    np.testing.assert_array_equal(
        trained["Qformer.bert.encoder.layer.0.crossattention.self.key.weight"],
        golden("weights")["Qformer.bert.encoder.layer.0.crossattention.self.key.weight"],
    )
