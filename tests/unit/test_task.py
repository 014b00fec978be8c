"""The task: which instruction stands around a dataset's images."""

from types import SimpleNamespace

import pytest
import torch

from minigpt4 import cli
from minigpt4.common.errors import DataError
from minigpt4.common.schema import BuildInfo, Config, DatasetConfig, ModelConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.tasks import ImageTextPretrain


def test_a_dataset_with_instructions_of_its_own_is_asked_by_these(tmp_path):
    (tmp_path / "filter_cap.json").write_text('{"annotations": [{"image_id": "1", "caption": "a cat"}]}')
    (tmp_path / "label.txt").write_text("<Img><ImageHere></Img> What is it?\nnot one\n")
    dataset = {
        "builder": "cc_sbu_align",
        "build_info": BuildInfo(storage=str(tmp_path)),
        "vis_processor": ProcessorsConfig(train=ProcessorConfig(name="blip2_image_eval")),
        "text_processor": ProcessorsConfig(train=ProcessorConfig(name="plain_text")),
    }
    config = Config(
        model=ModelConfig(prompt_template="Q: {} A: "),
        datasets={
            "labels": DatasetConfig(**dataset, prompt_path=str(tmp_path / "label.txt")),
            "captions": DatasetConfig(**dataset),
        },
    )
    task = ImageTextPretrain(config)
    model = SimpleNamespace(build_batch=lambda samples: samples.get("prompts"))
    assert task.build_batch(model, {"dataset": "labels"}) == ["Q: <Img><ImageHere></Img> What is it? A: "]
    assert task.build_batch(model, {"dataset": "captions"}) is None


def test_prompts_of_a_batch_replace_the_models_own(tiny_model, golden):
    samples = {"image": torch.from_numpy(golden("forward")["image"]), "text_input": ["a dog"] * 4}
    prompt = "###Human: <Img><ImageHere></Img> a ###Assistant: "
    asked = tiny_model.build_batch({**samples, "prompts": [prompt]})["input_ids"]
    length = sum(len(tiny_model.token_ids(half)) for half in prompt.split("<ImageHere>"))
    assert asked.shape[1] == tiny_model.build_batch(samples)["input_ids"].shape[1] + length


def test_wrong_data_of_every_dataset_is_told_by_its_key(tmp_path):
    processors = {
        "vis_processor": ProcessorsConfig(train=ProcessorConfig(name="blip2_image_eval")),
        "text_processor": ProcessorsConfig(train=ProcessorConfig(name="plain_text")),
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "filter_cap.json").write_text('{"annotations": [{"image_id": "1", "caption": "a cat"}]}')
    lies = {name: BuildInfo(storage=str(tmp_path / name)) for name in ("a", "b")}
    datasets = {
        name: DatasetConfig(builder="cc_sbu_align", build_info=info, valid_info=lies["a"], **processors)
        for name, info in lies.items()
    }
    with pytest.raises(DataError) as error:
        ImageTextPretrain(Config(datasets=datasets))
    told = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert told == [f"datasets.{part}.storage" for part in ("a.build_info", "a.valid_info", "b.valid_info")]


def test_a_qformer_from_scratch_can_be_the_next_runs_q_former_model(make_model, tmp_path, capsys):
    first = make_model(freeze_qformer=False, q_former_model=None, ckpt=None)
    checkpoint, out = tmp_path / "checkpoint_0.pth", tmp_path / "out" / "qformer.safetensors"
    torch.save({"model": first.trained_state()}, checkpoint)
    assert cli.main(["export", str(checkpoint), str(out), "--fp16"]) == 0
    assert "Qformer, llama_proj, ln_vision, query_tokens" in capsys.readouterr().out
    second = make_model(q_former_model=str(out), ckpt=str(out))
    assert torch.equal(second.query_tokens, first.query_tokens.half().float())
    assert torch.equal(second.llama_proj.weight, first.llama_proj.weight.half().float())
