"""The whole quickstart, on the golden set's tiny weights and a handful of pictures: files, numbers, reuse."""

import io
import json
import signal
import sys
import tarfile

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from minigpt4.checkup.golden import write_published_files
from minigpt4.common.config import load_config
from recipes import steps
from recipes.quickstart import run as quickstart

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
    for dataset in ("laion", "cc_sbu"):
        (folder / "stage1" / dataset).mkdir(parents=True)
        with tarfile.open(folder / "stage1" / dataset / "00000.tar", "w") as tar:
            for i in range(6):
                caption = json.dumps({"caption": f"a {names[i % 3]} on paper"}).encode()
                for suffix, data in (("jpg", jpeg(names[i % 3], i % 3)), ("json", caption)):
                    entry = tarfile.TarInfo(f"{i:05}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    for part in ("stage2", "heldout"):
        (folder / part / "image").mkdir(parents=True)
        annotations = []
        for i in range(9):
            name = names[i % 3]
            (folder / part / "image" / f"{i}.jpg").write_bytes(jpeg(name, i % 4))
            annotations.append({
                "image_id": str(i), "image": f"image/{i}.jpg", "scene": "paper", "caption": f"Here lies a {name}.",
                "objects": [{"name": name, "place": "left", "synonyms": []}],
            })  # fmt: skip
        name = "filter_cap.json" if part == "stage2" else "annotations.json"
        (folder / part / name).write_text(json.dumps({"annotations": annotations}))


@pytest.fixture
def plan(golden_dir, tmp_path) -> quickstart.Plan:
    """Configs like the shipped ones, for the golden set's model, four steps a stage."""
    files = write_published_files(golden_dir, tmp_path / "weights")
    files["qformer_kwargs"] = vars(files["qformer_kwargs"])
    ckpt = files.pop("ckpt")
    size = {"image_size": files["image_size"]}
    processor = {"train": {"name": "blip2_image_train", **size}}
    plain = {"train": {"name": "blip_caption"}}
    data = tmp_path / "data"
    run = {
        "init_lr": 1e-3, "max_epoch": 2, "iters_per_epoch": 2, "batch_size_train": 3, "num_workers": 0, "amp": False,
        "log_freq": 1, "device": "cpu",
    }  # fmt: skip

    def dataset(storage: str) -> dict:
        return {"build_info": {"storage": storage}, "vis_processor": processor, "text_processor": plain}

    elsewhere = str(golden_dir)  # --data replaces it
    configs = {
        "stage1": {"model": files, "datasets": {"laion": dataset(elsewhere), "cc_sbu": dataset(elsewhere)}, "run": run},
        "stage2": {
            "model": files | {"prompt_path": "prompts/alignment.txt", "prompt_template": "###Human: {} ###Assistant: "},
            "datasets": {"cc_sbu_align": dataset(elsewhere)},
            "run": run,
        },
        "chat": {"model": files | {"ckpt": ckpt}, "datasets": {"laion": dataset(elsewhere)}},
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
    for number in range(1, 7):
        assert f"[{number}/6] " in said
    assert "$ python train.py --cfg-path" in said and f"run.output_dir={plan.out / 'stage1'}" in said
    assert str(plan.out / "report.html") in said and "make demo" in said

    assert results == json.loads((plan.out / "results.json").read_text())
    assert (plan.out / "report.html").read_text().count("<article") == 8
    assert Image.open(plan.out / "report.png").width == 1600
    assert (plan.out / "report.html").read_text().count("data:image/png") == 2  # the loss of each stage
    assert results["answers"] == results["objects"] == 9
    for stage in ("stage1", "stage2"):
        scores = results["scores"][stage]
        for name, low_high in scores.items():
            assert low_high["low"] <= low_high["value"] <= low_high["high"], name
        verdicts = [item[stage] for item in results["items"]]
        assert scores["failed"]["value"] == sum(bool(v["flags"]) for v in verdicts) / 9
        right = sum(any(kind == "right" for *_, kind in v["marks"]) for v in verdicts)
        assert scores["objects_right"]["value"] == right / 9
    change = [results["scores"][stage]["objects_right"]["value"] for stage in ("stage1", "stage2")]
    assert results["difference"]["objects_right"]["value"] == pytest.approx(change[1] - change[0])
    assert results["items"][1]["truth"] == "leaf · paper"
    assert "objects named right" in said

    # Stage 2 went on from stage 1, and is another projection.
    first, second = (
        torch.load(plan.out / stage / "checkpoint_1.pth", weights_only=True) for stage in ("stage1", "stage2")
    )
    assert second["config"]["model"]["ckpt"] == str(plan.out / "stage1" / "checkpoint_1.pth")
    assert not torch.equal(first["model"]["llama_proj.weight"], second["model"]["llama_proj.weight"])
    assert results["trained"] == sum(tensor.numel() for tensor in second["model"].values())

    # A second call finds everything done; only the report, which is gone, is made again.
    (plan.out / "report.html").unlink()
    monkeypatch.setattr(quickstart.scores, "chat_for", lambda *_: pytest.fail("asked again"))
    again = quickstart.quickstart(plan)
    said = capfd.readouterr().out
    assert said.count("already trained") == 2 and "train.py" not in said
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
