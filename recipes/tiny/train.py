"""`minigpt4 tiny --photos photos.jsonl`: train the small model from captioned photos to its figures, as it ships.

Each step is a command that a user could type, and is printed as such; what is finished is reused by a later call.
"""

import argparse
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from minigpt4.common.checkpoint import read_state, save_weights
from minigpt4.common.config import load_config
from minigpt4.common.errors import UserError
from minigpt4.common.paths import sha256
from recipes.steps import Clock, call, minutes

from .photos import make_photos
from .questions import make_questions

CONFIGS = {stage: f"recipes/tiny/{stage}.yaml" for stage in ("words", "stage0", "stage1", "stage2")}
BEFORE = {"stage0": "words", "stage1": "stage0", "stage2": "stage1"}  # whose checkpoint a stage goes on with
CROPS = {"human_captions": 4, "class_labels": 2}  # of each training picture; two lists use the same
STEPS = ("weights", "data", "features", "words", "stage0", "stage1", "curate", "stage2", "export", "figures")
SHIPPED = ("qformer", "stage1", "stage2")  # .safetensors, as checkpoints/tiny/ has them
MEASURED = {  # of each file, by which suites
    "stage1": ("caption", "coverage", "failure"),
    "stage2": ("caption", "caption_val", "coverage", "failure", "labels", "vqa", "vqa_blind"),
}
SUITES = {  # name -> suite, split and more; stage 1 fills all the tokens it is given
    "caption": ("caption", "human_dev"),
    "caption_val": ("caption", "human_val"),
    "coverage": ("coverage", "human_val"),
    "failure": ("failure", "human_val", "--limit", "100", "--max-new-tokens", "120"),
    "labels": ("labels", "caltech_val"),
    "vqa": ("vqa", "human_dev", "--prompt", "{question}"),
    "vqa_blind": ("vqa", "human_dev", "--prompt", "{question}"),
}
CHAT = "eval_configs/tiny_eval.yaml"


@dataclass(frozen=True)
class Places:
    """Where things lie."""

    data: Path
    out: Path
    more: tuple[str, ...] = ()  # overrides of every training config

    def checkpoint(self, stage: str) -> Path:
        """What the next stage goes on with: the last. The best by validation on scenes would know fewer names."""
        config = load_config(CONFIGS[stage], self.more, mode="show")
        return self.out / stage / f"checkpoint_{config.run.max_epoch - 1}.pth"

    def options(self, stage: str = "") -> list[str]:
        """The config's paths, moved to these places, and the overrides; without a stage, of the data alone."""
        info, photos = "build_info", self.data / "photos.jsonl"
        moved = {"run.output_dir": self.out / stage} if stage else {}
        lists = {"human_captions": "human", "questions": "human", "class_labels": "labels", "class_names": "labels"}
        for name, file in lists.items():
            moved[f"datasets.{name}.{info}.storage"] = photos
            moved[f"datasets.{name}.{info}.features"] = self.data / "features" / f"{file}.npy"
        moved["datasets.human_captions.valid_info.storage"] = photos
        moved["datasets.human_captions.valid_info.features"] = self.data / "features" / "human_dev.npy"
        if stage == "words":
            moved["model.extra.words"] = self.data / "words.txt"
        moved["datasets.questions.extra.questions"] = self.data / "questions.jsonl"
        if stage in BEFORE:
            moved["model.ckpt"] = self.checkpoint(BEFORE[stage])
        if stage in ("stage1", "stage2"):
            moved["model.q_former_model"] = self.checkpoint("stage0")
        if stage == "stage2":
            moved["datasets.detailed.build_info.storage"] = self.out / "curated"
        return [*(f"{key}={value}" for key, value in moved.items()), *self.more]

    def evaluate(self, suite: str, photos: Sequence[str], folder: Path, model: Sequence[str]) -> dict:
        """What `minigpt4 eval` writes into results.json.

        Args:
            photos: its flags that choose some of photos.jsonl, or of questions.jsonl.
            folder: its --out.
            model: its --options.
        """
        listed = self.data / ("questions.jsonl" if suite == "vqa" else "photos.jsonl")
        call(
            "minigpt4", "eval", "--cfg-path", CHAT, "--suite", suite,
            "--data", str(listed), *photos, "--out", str(folder), "--options", *model,
        )  # fmt: skip
        newest = max((folder / suite).glob("*/results.json"), key=lambda file: file.stat().st_mtime_ns)
        return json.loads(newest.read_text(encoding="utf-8"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--photos", type=Path, required=True, metavar="FILE", help="photos.jsonl; checkpoints/tiny/README.md says what")
    add("--data", type=Path, default=Path("data/tiny"), help="lists and features go here (default: %(default)s)")
    add("--out", type=Path, default=Path("output/tiny"), help="runs, weights, figures (default: %(default)s)")
    add("--seed", type=int, default=42, help="of every stage (default: %(default)s)")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of every training config")


def run(args: argparse.Namespace) -> int:
    if not args.photos.is_file():
        raise UserError(f"--photos {args.photos}: no such file; checkpoints/tiny/README.md says what it holds")
    places = Places(args.data, args.out, (f"run.seed={args.seed}", *args.options))
    args.out.mkdir(parents=True, exist_ok=True)
    made_with = {"photos": sha256(args.photos), "data": str(args.data.resolve()), "options": list(places.more)}
    keep_to(args.out / "made_with.json", made_with)
    clock = Clock(args.out / "steps.json", STEPS)
    with clock.step("weights", "Weights: a small vision encoder and a small language model, both frozen", seconds=max):
        call("minigpt4", "weights", "--only", "efficientnet_lite2", "--only", "smollm2-135m-instruct")
    with clock.step("data", "Photos: captions written one way, a tenth of Caltech held out", seconds=max):
        print(", ".join(f"{split} {count}" for split, count in make_photos(args.photos, args.data).items()))
        print(", ".join(f"{kind} {count}" for kind, count in prepare_questions(places).items()))
    with clock.step("features", "Features: what the frozen encoder sees, several crops a photo", seconds=operator.add):
        for name, crops in CROPS.items():
            call(
                "minigpt4", "features", "--cfg-path", CONFIGS["stage0"], "--datasets", name, "--crops", str(crops),
                "--options", *places.options(),
            )  # fmt: skip
    titles = {
        "words": "Words: the Q-Former learns which words the captions use",
        "stage0": "Stage 0: the Q-Former and the projection, through the frozen language model",
        "stage1": "Stage 1: the projection alone",
        "stage2": "Stage 2: it goes on, on the curated descriptions",
    }
    for stage in ("words", "stage0", "stage1"):
        _train(stage, titles[stage], places, clock)
    with clock.step("curate", "Curation: stage 1 describes, bad sentences are dropped", seconds=operator.add):
        curate(places)
    _train("stage2", titles["stage2"], places, clock)
    with clock.step("export", "Weights to ship", seconds=max):
        export(places)
    with clock.step("figures", "Figures: on photos that were never trained on", seconds=max):
        figures = measure(places)
        (args.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        for name, (value, low, high) in figures.items():
            print(f"  {name:<52} {value:.3f}  ({low:.3f} to {high:.3f})")
    total = sum(clock.seconds.values())
    print(f"\nDone; all steps took {minutes(total)}. {args.out / 'weights'} holds what checkpoints/tiny/ ships.")
    return 0


def keep_to(file: Path, made_with: dict) -> None:
    """A folder is of one set of photos and options; mixing two would train on neither."""
    if file.exists() and (before := json.loads(file.read_text(encoding="utf-8"))) != made_with:
        raise UserError(f"{file.parent} was begun with {before}, not {made_with}; write another --out")
    file.write_text(json.dumps(made_with) + "\n", encoding="utf-8")


def _train(stage: str, title: str, places: Places, clock: Clock) -> None:
    finished = places.out / stage / "finished"
    with clock.step(stage, title, finished.exists(), operator.add):
        if not finished.exists():
            call("python train.py", "--cfg-path", CONFIGS[stage], "--options", *places.options(stage))
            finished.touch()


def curate(places: Places) -> None:
    """Stage 2's descriptions. The small model says one sentence and repeats it when it is asked to continue."""
    curated = places.out / "curated"
    if (curated / "filter_cap.json").exists():
        return
    call(
        "minigpt4", "curate", "--cfg-path", CHAT, "--data", str(places.data / "photos.jsonl"), "--out", str(curated),
        "--split", "human_train", "--no-continue", "--max-new-tokens", "40",
        "--options", *chat_model(places.checkpoint("stage0"), places.checkpoint("stage1")),
    )  # fmt: skip


def prepare_questions(places: Places) -> dict[str, int]:
    """Write the questions, and grey pictures under the photos' names, for what can be guessed blindly."""
    splits, blank = ("human_train", "human_dev", "human_val"), places.data / "blank"
    counts = make_questions(places.data / "photos.jsonl", splits, places.data / "questions.jsonl")
    blank.mkdir(exist_ok=True)
    Image.new("RGB", (224, 224), (124, 117, 104)).save(blank / "grey.jpg")
    for line in (places.data / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        link = blank / row["image"]
        if row["split"] != "human_train" and not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(blank.resolve() / "grey.jpg")
    return dict(counts)


def chat_model(qformer: Path, projection: Path) -> list[str]:
    """The options that put these files into CHAT."""
    vision = ["model.vit_model=tf_efficientnet_lite2", "model.vit_ckpt=weights/efficientnet_lite2/model.safetensors"]
    return [*vision, f"model.q_former_model={qformer}", f"model.ckpt={projection}"]


def export(places: Places) -> None:
    """What ships, in half precision: the Q-Former with stage 0's projection, and the projections of stages 1 and 2."""
    folder = places.out / "weights"
    folder.mkdir(exist_ok=True)
    for name, stage in zip(SHIPPED, ("stage0", "stage1", "stage2"), strict=True):
        state = {key: value.half() for key, value in read_state(places.checkpoint(stage)).items()}
        save_weights(state, folder / f"{name}.safetensors")
    print(", ".join(f"{f} {f.stat().st_size / 1e6:.1f} MB" for f in sorted(folder.glob("*.safetensors"))))


def measure(places: Places) -> dict[str, tuple[float, float, float]]:
    """name -> (value, low, high), by `minigpt4 eval` from the exported weights; 95 % intervals."""
    weights = places.out / "weights"
    found = {}
    for stage, names in MEASURED.items():
        model = chat_model(weights / "qformer.safetensors", weights / f"{stage}.safetensors")
        for name in names:
            suite, split, *more = SUITES[name]
            if name == "vqa_blind":
                more += ["--images", str(places.data / "blank")]
            results = places.evaluate(suite, ("--split", split, *more), places.out / "eval" / stage / name, model)
            for measure, score in results["scores"]["after"].items():
                label = f"{stage}, {name}: {results['measures'][measure]['label']}"
                found[label] = score["value"], score["low"], score["high"]
    return found
