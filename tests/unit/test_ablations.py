"""`minigpt4 ablations`: what each arm changes, what is run again, and what becomes of the figures of several seeds."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from minigpt4 import cli
from minigpt4.common.config import load_config
from recipes import steps
from recipes.tiny import ablations, ablations_plot
from recipes.tiny.train import Places

STEPS = ["train.py", "caption", "coverage"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """call(*arguments) -> (exit code, steps that ran, as (run, step)); training and evaluation write what they would.

    A run's losses are 2, 3, 7 for seeds 1, 2, 3, an arm's CIDEr is its place in ARMS plus a tenth of the seed.
    `call.stop_at` is a step that Ctrl-C ends, before it writes anything.
    """
    qformer = Places(tmp_path, tmp_path).checkpoint("stage0")
    qformer.parent.mkdir()
    qformer.write_bytes(b"a Q-Former")
    (qformer.parent / "finished").touch()
    ran = []

    def run_to_end(command: list[str]) -> int:
        options = dict(option.split("=", 1) for option in command[command.index("--options") + 1 :])
        step = "train.py" if command[1].endswith("train.py") else command[command.index("--suite") + 1]
        if step == "train.py":
            folder = tmp_path / "ablations" / options["run.output_dir"].rsplit("/", 1)[1]
        else:
            folder = tmp_path / "ablations" / options["model.ckpt"].split("/")[-2]
        ran.append((folder.name, step))
        assert options.get("model.proj_layers") == ("3" if folder.name.startswith("three_layers") else None)
        if ran[-1] == call.stop_at:
            raise KeyboardInterrupt
        arm, seed = folder.name.rsplit("-s", 1)
        if step == "train.py":
            rows = [{"step": 1, "loss": 9.0}, {"step": 80, "valid_loss": {"1": 2.0, "2": 3.0, "3": 7.0}[seed]}]
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "checkpoint_0.pth").touch()
        else:
            out = folder / "eval" / step / "checkpoint_0-photos-1234"
            out.mkdir(parents=True, exist_ok=True)
            cider = list(ablations.ARMS).index(arm) + int(seed) / 10
            scores = {"cider": {"value": cider}} if step == "caption" else {"foremost_named": {"value": 0.5}}
            (out / "results.json").write_text(json.dumps({"scores": {"after": scores}}))
        return 0

    monkeypatch.setattr(steps, "run_to_end", run_to_end)
    monkeypatch.setattr(ablations, "draw", lambda *_: None)  # takes longer than all the rest

    def call(*arguments: str) -> tuple[int, list[tuple[str, str]]]:
        ran.clear()
        return cli.main(["ablations", "--out", str(tmp_path), "--data", str(tmp_path), *arguments]), list(ran)

    call.stop_at = None
    return call


def test_the_figures_of_three_seeds_become_a_mean_with_its_deviation(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "draw", ablations_plot.draw)
    code, ran = study("--arms", "three_layers", "base")
    assert code == 0
    assert ran == [(f"{arm}-s{seed}", step) for seed in (1, 2, 3) for arm in ("three_layers", "base") for step in STEPS]
    arms = json.loads((tmp_path / "ablations" / "results.json").read_text())["arms"]
    assert list(arms) == ["base", "three_layers"]
    assert arms["three_layers"]["valid_loss"]["mean"] == pytest.approx(4)
    assert arms["three_layers"]["valid_loss"]["std"] == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    assert arms["three_layers"]["cider"]["runs"] == pytest.approx([2.1, 2.2, 2.3])
    said = capsys.readouterr().out
    assert "| three layers | 4.000 ± 2.646 | 2.200 ± 0.100 | 50.0% ± 0.0% | 3 |" in said
    with Image.open(tmp_path / "ablations" / "ablations.png") as image:
        assert image.width > 1500
        assert image.convert("L").getpixel((2, 2)) == 255  # light


def test_only_what_is_missing_is_run(study, tmp_path, capsys):
    part = ["--arms", "base", "data_10", "--seeds", "2"]
    study.stop_at = ("data_10-s2", "coverage")
    assert study(*part) == (130, [("base-s2", s) for s in STEPS] + [("data_10-s2", s) for s in STEPS])
    study.stop_at = None
    assert study(*part) == (0, [("data_10-s2", "caption"), ("data_10-s2", "coverage")])
    capsys.readouterr()
    assert study(*part) == (0, [])
    said = capsys.readouterr().out
    assert (
        "| one linear layer, frozen Q-Former, all data | 3.000 | 0.200 | 50.0% | 1 |" in said
    )  # one run: no deviation
    assert study("--arms", "base", "--seeds", "3") == (0, [("base-s3", s) for s in STEPS])
    assert "| 10 % of the data | 3.000 | 4.200 | 50.0% | 1 |" in capsys.readouterr().out  # an earlier call's


def test_runs_that_were_made_otherwise_are_not_mixed_in(study, tmp_path, capsys):
    part = ["--arms", "base", "--seeds", "1"]
    assert study(*part)[0] == 0
    assert study(*part, "--options", "run.iters_per_epoch=30") == (1, [])
    assert "write another --out" in capsys.readouterr().err
    Places(tmp_path, tmp_path).checkpoint("stage0").write_bytes(b"another Q-Former")
    assert study("--arms", "three_layers", "--seeds", "1") == (1, [])  # beside base-s1, which has the other one
    assert "write another --out" in capsys.readouterr().err
    (tmp_path / "stage0" / "finished").unlink()
    assert study(*part) == (1, [])
    assert "stage0 is not finished: `minigpt4 tiny` trains it" in capsys.readouterr().err
    assert study(*part, "--qformer", "missing.pth") == (1, [])
    assert "missing.pth: no such file" in capsys.readouterr().err


def test_an_edited_config_is_another_study(study, tmp_path, monkeypatch, capsys):
    assert study("--arms", "base", "--seeds", "1")[0] == 0
    edited = tmp_path / "edited.yaml"
    edited.write_text(f"base: {Path(ablations.CONFIG).resolve()}\nrun: {{init_lr: 0.5}}\n")
    monkeypatch.setattr(ablations, "CONFIG", str(edited))
    assert study("--arms", "base", "--seeds", "1") == (1, [])
    assert "was begun with" in capsys.readouterr().err


def test_each_arm_changes_its_own_keys_in_training_and_evaluation(study, tmp_path):
    found = ablations.Study(Places(tmp_path, tmp_path), Places(tmp_path, tmp_path).checkpoint("stage0"))
    configs = {arm: load_config(ablations.CONFIG, found.options(arm, 5), mode="show") for arm in ablations.ARMS}
    assert all(config.model.ckpt is None for config in configs.values())  # each from nothing
    model = {a: (c.model.has_qformer, c.model.proj_layers, c.model.freeze_qformer) for a, c in configs.items()}
    others = {"no_qformer": (False, 1, True), "three_layers": (True, 3, True), "trained_qformer": (True, 1, False)}
    assert model == dict.fromkeys(ablations.ARMS, (True, 1, True)) | others
    shares = {a: [d.extra.get("share", 1) for d in c.datasets.values() if d.sample_ratio] for a, c in configs.items()}
    assert (shares["base"], shares["data_10"], shares["data_30"], shares["data_50"]) == (
        [1, 1], [0.1, 0.1], [0.3, 0.3], [0.5, 0.5],
    )  # fmt: skip
    assert {(c.run.seed, len(shares[a]), c.model.end_sym) for a, c in configs.items()} == {(5, 2, "<|im_end|>")}
