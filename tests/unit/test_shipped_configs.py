"""The configs that ship: those that belong together fit together, and one's own photos need nothing else."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from made import picture
from PIL import Image

from minigpt4.common.config import load_config, read_config
from minigpt4.common.schema import Config, DatasetConfig, ModelConfig
from minigpt4.conversation.chat_template import with_training_form
from minigpt4.processors.image_processors import Blip2ImageEval
from minigpt4.processors.text_processors import PlainText
from minigpt4.tasks import ImageTextPretrain, chat_processor
from recipes.quickstart.run import Plan
from tests.training import lay_model

PROJECT = Path(__file__).parents[2]
CONFIGS = sorted([*PROJECT.glob("train_configs/tiny_*.yaml"), *PROJECT.glob("recipes/*/*.yaml")])


def outputs() -> set[str]:
    """What the runs of all small configs end with, and the quickstart's warm start."""
    runs = [read_config(str(path), (), mode="show")[0].run for path in CONFIGS]
    trained = {f"{run.output_dir}/checkpoint_{run.max_epoch - 1}.pth" for run in runs}
    return {*trained, "output/quickstart/warm_start/checkpoint_0.pth"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_goes_on_from_what_another_one_writes(path):
    model = read_config(str(path), (), mode="show")[0].model
    begins_with = {f for f in (model.ckpt, model.q_former_model) if f and f.startswith("output/")}
    assert begins_with <= outputs()


def test_stage_2_goes_on_from_the_quickstarts_own_output():
    plan = Plan(out=Path("output/quickstart"))
    first, second = (read_config(c, (), mode="show")[0] for c in (plan.stage1, plan.stage2))
    assert first.model.ckpt == str(plan.out / "warm_start" / "checkpoint_0.pth")
    assert second.model.ckpt == str(plan.out / "stage1" / f"checkpoint_{first.run.max_epoch - 1}.pth")
    assert second.run.output_dir == str(plan.out / "stage2")


@pytest.fixture
def my_photos(tmp_path, golden_dir, monkeypatch):
    """Ten pictures with a sentence each, and my_photos.yaml over the tiny model in the place of the one that ships."""
    monkeypatch.chdir(tmp_path)
    Path("my_photos").mkdir()
    lines = []
    for i in range(10):
        Path(f"my_photos/{i}.png").write_bytes(picture(20 * i))
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"A grey square, number {i}."}))
    Path("my_photos/photos.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    config = yaml.safe_load((PROJECT / "train_configs/my_photos.yaml").read_text())
    del config["base"]
    config["model"] |= {**lay_model(golden_dir, tmp_path / "files"), "ckpt": None, "conv_template": "chatml"}
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    return "mine.yaml"


def test_my_photos_begins_with_the_checkpoint_that_ships():
    config, _ = read_config(str(PROJECT / "train_configs/my_photos.yaml"), (), mode="show")
    assert config.model.ckpt == "checkpoints/tiny/stage2.safetensors"
    assert list(config.datasets) == ["captioned_photos"]
    derived = with_training_form(config.model, None)
    assert derived.prompt_template == "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert derived.end_sym == "<|im_end|>"
    text = (PROJECT / "train_configs/my_photos.yaml").read_text()
    last = f"{config.run.output_dir}/checkpoint_{config.run.max_epoch - 1}.pth"
    assert last in text, "the command in its head names the last checkpoint"
    for line in re.findall(r"^#   (\{.*\})$", text, re.M):
        assert set(json.loads(line)) == {"image", "caption"}


def test_ten_photos_with_a_sentence_each_become_batches(my_photos):
    task = ImageTextPretrain(load_config(my_photos, ["run.num_workers=0"], mode="train"))
    _, batch = next(iter(task.build_loader(0, 1, 0)))
    assert batch["image"].shape == (5, 3, 56, 56) and not batch["bad"]
    assert all(re.fullmatch(r"A grey square, number \d\.", text) for text in batch["text_input"])


def test_processors_have_defaults(my_photos):
    """BLIP-2's, with the mean and std of the ViT: CLIP's for EVA, timm's own for others; texts as they are."""
    config = load_config(my_photos, mode="train")
    source = ImageTextPretrain(config).sources["captioned_photos"]
    assert isinstance(source.text_processor, PlainText)
    seen = Image.effect_noise((60, 60), 90)
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for vit, expected in (("eva_clip_g", {}), ("tf_efficientnet_lite0", half)):
        bare = Config(ModelConfig(image_size=56, vit_model=vit), {"any": DatasetConfig()})
        assert torch.equal(chat_processor(bare)(seen), Blip2ImageEval(56, **expected)(seen))
    lite = dataclasses.replace(config.model, vit_model="tf_efficientnet_lite0")
    train = ImageTextPretrain(dataclasses.replace(config, model=lite)).sources["captioned_photos"].vis_processor
    assert train(Image.new("L", (9, 9))).unique().tolist() == [-1]
