"""The whole quickstart, on the golden set's tiny weights and a handful of pictures: files, numbers, reuse."""

import io
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from minigpt4.common.config import load_config
from recipes import steps
from recipes.quickstart import run as quickstart
from tests.golden_set import write_published_files

COLOURS = {"apple": (200, 30, 30), "leaf": (30, 160, 60), "plum": (110, 40, 150)}


def jpeg(name: str, place: int) -> bytes:
    image = Image.new("RGB", (64, 64), (230, 220, 200))
    ImageDraw.Draw(image).ellipse((4 + 8 * place, 8, 40 + 8 * place, 44), fill=COLOURS[name])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def make_data(folder) -> None:
    """What the sample set would make, with one coloured disc a picture."""
    names = list(COLOURS)
    for part in ("stage1", "stage2", "heldout"):
        (folder / part / "photos").mkdir(parents=True)
        rows = []
        for i in range(9):
            name, file = names[i % 3], f"photos/{i}.jpg"
            (folder / part / file).write_bytes(jpeg(name, i % 4))
            row = {"image": Path(file).name, "caption": f"Here lies a {name}."}
            if part == "heldout":
                things = [{"name": name, "place": "left", "synonyms": []}]
                row |= {"image": file, "image_id": str(i), "scene": "paper", "objects": things}
            rows.append(row)
        if part == "heldout":
            (folder / part / "annotations.json").write_text(json.dumps({"annotations": rows}))
        else:
            (folder / part / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def plan(golden_dir, tmp_path) -> quickstart.Plan:
    """Configs like the shipped ones, for the golden set's model, four steps a stage."""
    files = write_published_files(golden_dir, tmp_path / "weights")
    files["qformer_kwargs"] = vars(files["qformer_kwargs"])
    ckpt = files.pop("ckpt")
    size = {"image_size": files["image_size"]}
    processor = {"train": {"name": "blip2_image_eval", **size}}
    plain = {"train": {"name": "blip_caption"}}
    data = tmp_path / "data"
    run = {
        "init_lr": 1e-3, "max_epoch": 2, "iters_per_epoch": 2, "batch_size_train": 3, "num_workers": 0, "amp": False,
        "log_freq": 1, "device": "cpu",
    }  # fmt: skip

    elsewhere = {"storage": str(golden_dir), "features": "none.npy"}  # --data replaces it
    photos = {"captioned_photos": {"build_info": elsewhere, "vis_processor": processor, "text_processor": plain}}
    configs = {
        "stage1": {"model": files, "datasets": photos, "run": run},
        "stage2": {
            "model": files | {"prompt_path": "prompts/alignment.txt", "prompt_template": "###Human: {} ###Assistant: "},
            "datasets": photos,
            "run": run,
        },
        "chat": {"model": files | {"ckpt": ckpt}, "datasets": photos},
    }
    paths = {}
    for name, config in configs.items():
        paths[name] = str(tmp_path / f"{name}.yaml")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return quickstart.Plan(
        out=tmp_path / "out", data=data, get_weights=lambda: None, max_new_tokens=8, batch_size=4,
        make_data=lambda folder: None if folder.exists() else make_data(folder), **paths,
    )  # fmt: skip


def test_from_weights_to_report_and_again(plan, capfd, monkeypatch):
    results = quickstart.quickstart(plan)
    said = capfd.readouterr().out
    for number in range(1, 9):
        assert f"[{number}/8] " in said
    assert "$ python train.py --cfg-path" in said and f"run.output_dir={plan.out / 'stage1'}" in said
    assert str(plan.out / "report.html") in said
    assert f"make demo CKPT={plan.out / 'stage2' / 'checkpoint_1.pth'}" in said

    assert results == json.loads((plan.out / "results.json").read_text())
    assert (plan.out / "report.html").read_text().count("<article") == 8
    assert (plan.out / "report.html").read_text().count("<svg") == 3  # the loss of each
    assert [len(results["losses"][stage]) for stage in ("warm_start", "stage1", "stage2")] == [12, 4, 4]
    assert results["answers"] == results["objects"] == 9
    for stage in ("warm_start", "stage1", "stage2"):
        scores = results["scores"][stage]
        for name, low_high in scores.items():
            assert low_high["low"] <= low_high["value"] <= low_high["high"], name
        verdicts = [item[stage] for item in results["items"]]
        assert scores["failed"]["value"] == sum(bool(v["flags"]) for v in verdicts) / 9
        right = sum(any(kind == "right" for *_, kind in v["marks"]) for v in verdicts)
        assert scores["objects_right"]["value"] == right / 9
    assert results["items"][1]["truth"] == "leaf · paper"
    assert "objects named right" in said

    # Stage 1 went on from the warm start, stage 2 from stage 1; each is another projection.
    warm = torch.load(plan.out / "warm_start" / "checkpoint_0.pth", weights_only=True)
    first, second = (
        torch.load(plan.out / stage / "checkpoint_1.pth", weights_only=True) for stage in ("stage1", "stage2")
    )
    assert second["config"]["model"]["ckpt"] == str(plan.out / "stage1" / "checkpoint_1.pth")
    assert first["config"]["model"]["ckpt"] == str(plan.out / "warm_start" / "checkpoint_0.pth")
    assert not torch.equal(warm["model"]["llama_proj.weight"], first["model"]["llama_proj.weight"])
    assert not torch.equal(first["model"]["llama_proj.weight"], second["model"]["llama_proj.weight"])
    assert results["trained"] == sum(tensor.numel() for tensor in second["model"].values())

    # A second call finds everything done; only the report, which is gone, is made again.
    (plan.out / "report.html").unlink()
    monkeypatch.setattr(quickstart.scores, "chat_for", lambda *_: pytest.fail("asked again"))
    again = quickstart.quickstart(plan)
    said = capfd.readouterr().out
    assert said.count("already trained") == 3 and "train.py" not in said
    assert (plan.out / "report.html").exists()
    same = ("scores", "items", "measures")
    assert {k: again[k] for k in same} == {k: results[k] for k in same}
    assert [again["seconds"][k] for k in ("stage1", "stage2")] == [results["seconds"][k] for k in ("stage1", "stage2")]


def test_a_failed_stage_says_which(plan, monkeypatch):
    monkeypatch.setattr(steps.sys, "executable", "false")
    with pytest.raises(steps.StepError, match=r"stage1\.yaml did not finish \(exit code 1"):
        quickstart.quickstart(plan)


def test_sigterm_reaches_the_command(tmp_path):
    """The command gets the time to save its work, and no later step begins."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        steps.run_to_end([sys.executable, str(script), str(tmp_path / "saved")])
    assert (tmp_path / "saved").read_text() == "saved"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stage_begun_on_something_else_is_set_aside(plan, tmp_path, capsys):
    file = plan.data / "first.pth"
    file.parent.mkdir()
    config = load_config(plan.stage2, mode="show")
    prints = []
    for text, options in (("one", []), ("one", []), ("two", []), ("two", ["run.init_lr=0.5"])):
        file.write_text(text)
        prints.append(quickstart.fingerprint(plan, load_config(plan.stage2, options, mode="show"), file))
    assert prints[0] == prints[1] and len(set(prints)) == 3
    assert prints[0] != quickstart.fingerprint(plan, config)

    folder = tmp_path / "stage2"
    for fingerprint, kept in ((prints[0], True), (prints[1], True), (prints[2], False), (prints[3], False)):
        clock = quickstart.Clock(tmp_path / "steps.json", quickstart.STEPS)
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint_0.pth").touch()
        quickstart.set_aside_if_outdated(folder, clock, fingerprint)
        assert folder.exists() is kept
    assert (tmp_path / "stage2.before" / "checkpoint_0.pth").exists()
    assert capsys.readouterr().out.count("begins anew") == 2
