"""The task: which instruction stands around a dataset's images."""

from types import SimpleNamespace

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
    seen = []

    def model(batch):
        seen.append(batch.get("prompts"))
        return {"loss": SimpleNamespace()}

    task.train_step(model, {"dataset": "labels"})
    task.train_step(model, {"dataset": "captions"})
    assert seen == [["Q: <Img><ImageHere></Img> What is it? A: "], None]


def test_prompts_of_a_batch_replace_the_models_own(tiny_model, golden):
    import torch

    samples = {"image": torch.from_numpy(golden("forward")["image"]), "text_input": ["a dog"] * 4}
    prompt = "###Human: <Img><ImageHere></Img> a ###Assistant: "
    asked = tiny_model.build_inputs({**samples, "prompts": [prompt]})["inputs_embeds"]
    assert torch.equal(asked, tiny_model.build_inputs(samples, prompt)["inputs_embeds"])
    assert asked.shape[1] > tiny_model.build_inputs(samples)["inputs_embeds"].shape[1]
