"""Made data and configs for the golden set's tiny model, and a training process that can be killed: everything a user
has, in a few kilobytes. The end-to-end tests and soak.py share it."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import webdataset as wds
import yaml
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 190), "white": (250, 250, 250)}


def picture(colour: str, place: int) -> Image.Image:
    """A disc of a colour on grey, further to the right with `place`."""
    image = Image.new("RGB", (72, 64), (128, 128, 128))
    ImageDraw.Draw(image).ellipse((4 * place, 10, 4 * place + 40, 50), fill=COLOURS[colour])
    return image


def lay_model(golden: Path, folder: Path) -> dict:
    """The files a user downloads, laid out from a golden set: the `model` section that names them."""
    from tests.golden_set import write_published_files

    files = write_published_files(golden, folder)
    return {**files, "qformer_kwargs": vars(files["qformer_kwargs"])}


def lay_data(folder: Path) -> Path:
    """laion/{00000..00001}.tar, cc_sbu/00000.tar, and align/ for stage 2."""
    names = list(COLOURS)
    for dataset, shards in (("laion", 2), ("cc_sbu", 1)):
        (folder / dataset).mkdir(parents=True)
        for s in range(shards):
            with wds.TarWriter(str(folder / dataset / f"{s:05}.tar")) as tar:
                for i in range(20):
                    colour = names[(i + s) % 4]
                    caption = {"caption": f"A {colour} ball, {dataset} {s} {i}!"}
                    tar.write({"__key__": f"{i:06}", "jpg": picture(colour, i % 8), "json": caption})
    (folder / "align" / "image").mkdir(parents=True)
    annotations = []
    for i in range(16):
        picture(names[i % 4], i % 8).save(folder / "align" / "image" / f"{i}.jpg")
        annotations.append({"image_id": str(i), "caption": f"There is a {names[i % 4]} ball near the house."})
    (folder / "align" / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return folder


def lay_config(
    folder: Path, published: dict, data: Path, stage: str, name: str = "run", model: dict | None = None,
    run: dict | None = None,
) -> str:  # fmt: skip
    """The path of a YAML for stage1 or stage2 in `folder`; its output_dir is folder/name."""
    size = published["image_size"]
    processors = {
        "vis_processor": {"train": {"name": "blip2_image_train", "image_size": size}},
        "text_processor": {"train": {"name": "blip_caption"}},
    }
    if stage == "stage1":
        datasets = {
            "laion": {"build_info": {"storage": str(data / "laion/{00000..00001}.tar")}, "sample_ratio": 2},
            "cc_sbu": {"build_info": {"storage": str(data / "cc_sbu/*.tar")}, "sample_ratio": 1},
        }
        of_stage = {"end_sym": "\n", "max_txt_len": 32}
    else:
        datasets = {"cc_sbu_align": {"build_info": {"storage": str(data / "align")}}}
        of_stage = {
            "end_sym": "###", "max_txt_len": 48, "prompt_path": "prompts/alignment.txt",
            "prompt_template": "###Human: {} ###Assistant: ",
        }  # fmt: skip
    config = {
        "model": {**published, "ckpt": None, **of_stage, **(model or {})},
        "datasets": {n: {**d, **processors} for n, d in datasets.items()},
        "run": {
            "init_lr": 2e-2, "min_lr": 1e-2, "warmup_lr": 1e-3, "warmup_steps": 2, "max_epoch": 2,
            "iters_per_epoch": 6, "batch_size_train": 4, "num_workers": 0, "log_freq": 1, "device": "cpu",
            "output_dir": str(folder / name), **(run or {}),
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


class Child:
    """`train.main` in a forked process, the head of its own process group. It starts at once: torch is there.

    Args:
        prepare: called in the process before it trains.
    """

    def __init__(self, config: str, log: Path, *options: str, prepare: Callable[[], None] = lambda: None):
        self.log, self.code = log, None
        log.touch()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                sys.stdout = sys.stderr = log.open("w", buffering=1)
                import train

                prepare()
                code = train.main(["--cfg-path", config, *(["--options", *options] if options else [])])
            except BaseException:
                traceback.print_exc()
                code = 99
            os._exit(code)  # pytest's own end is the parent's

    def poll(self) -> int | None:
        """The exit code (minus the signal's number, if one killed it), None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait_for(self, enough, seconds: float = 60) -> None:
        """Until `enough()`; fails when the process ends before."""
        end = time.monotonic() + seconds
        while not enough():
            assert self.poll() is None, f"ended early: {self.log.read_text()}"
            assert time.monotonic() < end, f"waited too long: {self.log.read_text()}"
            time.sleep(0.002)

    def signal(self, number: int, group: bool = False) -> int:
        """Send it and wait for the end: the exit code."""
        (os.killpg if group else os.kill)(self.pid, number)
        return self.end()

    def end(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < end, f"does not end: {self.log.read_text()}"
            time.sleep(0.002)
        return self.code
