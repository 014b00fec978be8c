"""Parity with the original on golden set `a`: every array, and what the checkpoints hold."""

import shutil

import numpy as np
import pytest
import torch

from minigpt4.common.errors import main_guard
from tests.golden_set import golden_model
from tests.parity import compare, main, row, uncompared, vision

SETS = ("a", "b", "c")  # `b`, `c`: all widths different; `c`: variances near the norms' epsilons


@pytest.fixture(scope="module", params=SETS)
def golden_set(request, golden_dir):
    return golden_dir.parent / request.param


@pytest.fixture(scope="module")
def rows(golden_set):
    return list(compare(golden_set))


def test_every_array_is_compared_and_holds(golden_set, rows):
    assert len(rows) >= 46
    assert uncompared(golden_set, rows) == []
    assert [row for row in rows if not row.holds(1e-4)] == []


@pytest.mark.parametrize("norm", ["ln_vision", "visual_encoder.blocks.0.norm1", "Qformer.layernorm"])
def test_a_wrong_epsilon_is_seen(golden_dir, tmp_path, norm):
    """Set `c` has what it takes to see it."""
    model = golden_model(golden_dir.parent / "c", tmp_path).eval()
    module = model.get_submodule(norm)
    module.eps = {1e-5: 1e-6, 1e-6: 1e-5, 1e-12: 1e-5}[module.eps]
    with np.load(golden_dir.parent / "c" / "forward.npz") as arrays:
        assert not row("forward", "proj_out", dict(vision(arrays, model))["proj_out"], arrays["proj_out"]).holds()


def test_parity_command_tells_a_wrong_weight(golden_dir, golden, tmp_path, capsys):
    broken = tmp_path / "set"
    shutil.copytree(golden_dir, broken)
    weights = golden("weights")
    weights["ln_vision.bias"] = weights["ln_vision.bias"] + 1e-2
    np.savez(broken / "weights.npz", **weights)
    assert main([str(broken)]) == 1
    out = capsys.readouterr().out
    assert "ln_vision_out" in out and "PAST TOLERANCE" in out
    vit = next(line for line in out.splitlines() if "vit_out" in line)
    assert "PAST" not in vit


def test_a_folder_that_is_no_golden_set(tmp_path, capsys):
    assert main_guard(lambda: main([str(tmp_path)])) == 1
    assert "no golden set here" in capsys.readouterr().err


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
