"""Other LLMs: the tokenizer's own chat template is what training and chat write; each trains, goes on and answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from llms import LLAMA_3_2, LLMS, PHI_3, byte_tokenizer, write_llm
from PIL import Image

import train
from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.conversation.chat_template import conversation_of, read_chat_template, with_training_form
from minigpt4.conversation.prompts import CHATML, VICUNA_V0, ChatState, Turn
from minigpt4.models.llm import load_tokenizer
from minigpt4.serve import build_chat
from tests.golden_set import write_published_files

INSTRUCTION = "<Img><ImageHere></Img> Describe this image in detail."


@pytest.fixture(scope="module")
def folders(golden_dir, tmp_path_factory) -> dict[str, Path]:
    """The folder of each LLM."""
    where = tmp_path_factory.mktemp("llms")
    return {name: write_llm(name, where / name, golden_dir / "tokenizer") for name in LLMS}


@pytest.fixture(scope="module")
def vision(golden_dir, tmp_path_factory) -> dict:
    """The vision side of golden set `a`, and a stage-2 folder of two pictures."""
    where = tmp_path_factory.mktemp("vision")
    files = write_published_files(golden_dir, where)
    (where / "align/image").mkdir(parents=True)
    notes = []
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(where / f"align/image/{i}.jpg")
        notes.append({"image_id": str(i), "caption": f"There is a {colour} ball near the house."})
    (where / "align/filter_cap.json").write_text(json.dumps({"annotations": notes}))
    return {**files, "qformer_kwargs": vars(files["qformer_kwargs"]), "ckpt": None, "align": str(where / "align")}


def conversation(template) -> tuple[ChatState, list[dict]]:
    """Three turns, as ours and as transformers' messages."""
    turns = [Turn("What is it?", [torch.zeros(1)], "A cat."), Turn("Sure?", [], "Yes."), Turn("Why?")]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.question), ("assistant", turn.answer))
        if text
    ]
    messages[0]["content"] = "<Img><ImageHere></Img> What is it?"
    return ChatState(template, turns), messages


# -- the template -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LLMS)
def test_a_chat_is_written_as_the_tokenizer_writes_it(folders, name):
    tokenizer = load_tokenizer(str(folders[name]))
    template = read_chat_template(tokenizer)
    conv, messages = conversation(template)
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert conv.prompt() == theirs
    first = ChatState(template, [Turn("Describe this image in detail.", [torch.zeros(1)])])
    assert template.prompt_template.replace("{}", INSTRUCTION) == first.prompt()


@pytest.mark.parametrize(
    ("name", "end_sym", "stop", "pad"),
    [
        ("llama-2", " </s>", ("</s>", "<s>"), "<unk>"),
        ("mistral", "</s>", ("</s>", "[INST]"), "<unk>"),
        ("llama-3", "<|eot_id|>", ("<|eot_id|>", "<|start_header_id|>"), "<|end_of_text|>"),
        ("qwen2.5", "<|im_end|>", ("<|im_end|>", "<|im_start|>"), "<|endoftext|>"),
        ("qwen3", "<|im_end|>", ("<|im_end|>", "<|im_start|>"), "<|endoftext|>"),
        ("smollm2", "<|im_end|>", ("<|im_end|>", "<|im_start|>"), "<|endoftext|>"),
    ],
)
def test_what_ends_an_answer(folders, vision, name, end_sym, stop, pad):
    """The end symbol is learned: it is among the labels, for the padding token is another."""
    model = load_config_of(folders[name], vision).model
    from minigpt4.tasks import build_model

    built = build_model(model)
    assert built.config.end_sym == end_sym and built.tokenizer.pad_token == pad
    assert conversation_of("auto", built.tokenizer).stop == stop
    assert built.prompt_list == [p for p in built.prompt_list if p.count("<ImageHere>") == 1]
    batch = built.build_batch({"image": torch.zeros(2, 3, 56, 56), "text_input": ["a dog", "two red dogs"]})
    end = built.tokenizer.convert_tokens_to_ids(end_sym.strip())
    assert (batch["target_ids"] == end).sum() == 2
    # BOS once, where the LLM has one
    ids = built.tokenizer(built.prompt_list[0], add_special_tokens=False)["input_ids"]
    bos = built.tokenizer.bos_token_id
    first = built.embed_segments([built.prompt_list[0]])[0]
    assert len(first) == len(ids) and (bos is None or ids[0] == bos)


def test_templates_with_a_clock_or_an_end_of_text():
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer = byte_tokenizer(special, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    tokenizer.chat_template = LLAMA_3_2
    assert "Today Date: 26 Jul 2024\n" in read_chat_template(tokenizer).system
    tokenizer.chat_template = PHI_3
    template = read_chat_template(tokenizer)
    conv, messages = conversation(template)
    assert conv.prompt() == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (template.user, template.end_sym) == ("<|user|>\n{text}<|end|>\n", "<|end|>")


def test_a_tokenizer_without_a_usable_template():
    tokenizer = byte_tokenizer([], eos_token="</s>")
    with pytest.raises(ConfigError, match=r"model\.conv_template: auto: .* has no chat template .*chatml, vicuna_v0"):
        read_chat_template(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ConfigError, match="cannot write a conversation of two turns: no"):
        read_chat_template(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}{% endfor %} A:"
    with pytest.raises(ConfigError, match="does not mark where an answer ends"):
        read_chat_template(tokenizer)


def test_what_the_config_sets_stands(tiny_model):
    config = replace(tiny_model.config, prompt_template=None, end_sym=None, prompt_path="prompts/alignment.txt")
    ours = with_training_form(config, None)
    assert (ours.prompt_template, ours.end_sym) == ("###Human: {} ###Assistant: ", "###")
    assert with_training_form(replace(config, prompt_path=None), None).end_sym == "\n"
    ours = with_training_form(replace(config, end_sym="</s>", prompt_template="Q {} A"), None)
    assert (ours.prompt_template, ours.end_sym) == ("Q {} A", "</s>")
    ours = with_training_form(replace(config, conv_template="chatml"), None)
    assert ours.prompt_template == "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert ours.end_sym == "<|im_end|>"
    assert VICUNA_V0.past == CHATML.past == ""


def test_a_stage_2_config_of_vicuna_with_auto_is_told(folders, caplog):
    """Its prompt_template and end_sym stand, so training would be unlike the chat."""
    config = load_config("train_configs/minigpt4_stage2_finetune.yaml", ["model.conv_template=auto"], mode="show").model
    tokenizer = load_tokenizer(str(folders["qwen2.5"]))
    assert with_training_form(config, tokenizer).end_sym == "###"
    assert [record.args[0] for record in caplog.records] == ["prompt_template", "end_sym"]
    caplog.clear()
    with_training_form(replace(config, prompt_template=None, end_sym="<|im_end|>"), tokenizer)
    with_training_form(replace(config, prompt_path=None), tokenizer)
    assert not caplog.records


def test_a_tokenizer_json_that_is_not_rebuilt_is_left_alone(folders, golden_dir, tmp_path):
    """Mistral v0.3 has both files, and its tokenizer.json puts a blank only where a text begins."""
    from tokenizers import Tokenizer, pre_tokenizers

    for file in folders["mistral"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.model").write_bytes((golden_dir / "tokenizer/tokenizer.model").read_bytes())
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(["[INST]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.tokenize("[INST] dog") == ["[INST]", *tokenizer.tokenize("dog")]


# -- end to end -------------------------------------------------------------------------------------------------------


def write_config(llm: Path, vision: dict, folder: Path, **run) -> str:
    """A stage-2 YAML for this LLM: of the LLM, only `llama_model` and `conv_template`."""
    model = {k: v for k, v in vision.items() if k != "align"}
    config = {
        "model": {
            **model, "llama_model": str(llm), "conv_template": "auto", "prompt_path": "prompts/alignment.txt",
            "max_txt_len": 48,
        },
        "datasets": {
            "cc_sbu_align": {
                "build_info": {"storage": vision["align"]},
                "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 56}},
                "text_processor": {"train": {"name": "plain_text"}},
            }
        },
        "run": {
            "init_lr": 1e-2, "max_epoch": 1, "iters_per_epoch": 2, "batch_size_train": 2, "num_workers": 0,
            "log_freq": 1, "device": "cpu", "output_dir": str(folder / "run"), **run,
        },
    }  # fmt: skip
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def load_config_of(llm: Path, vision: dict):
    return load_config(write_config(llm, vision, Path(vision["align"]).parent), mode="train")


@pytest.mark.parametrize("name", LLMS)
def test_it_trains_goes_on_and_answers(folders, vision, tmp_path, no_plot, name):
    config, run = write_config(folders[name], vision, tmp_path), tmp_path / "run"
    assert train.main(["--cfg-path", config]) == 0
    assert train.main(["--cfg-path", config, "--options", "run.max_epoch=2"]) == 0
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    weights = [read_state(run / f"checkpoint_{epoch}.pth") for epoch in (0, 1)]
    assert set(weights[0]) == {"llama_proj.weight", "llama_proj.bias"}
    assert not torch.equal(weights[0]["llama_proj.weight"], weights[1]["llama_proj.weight"])

    chat = build_chat(load_config(config, [f"model.ckpt={run / 'checkpoint_1.pth'}"], mode="chat"))
    assert torch.equal(chat.model.llama_proj.weight, weights[1]["llama_proj.weight"])
    conv = chat.new_conversation()
    chat.upload_img(Image.new("RGB", (64, 64), "red"), conv)
    for question in ("Describe this image in detail.", "Why?"):
        chat.ask(question, conv)
        text, ids = chat.answer(conv, do_sample=False, max_new_tokens=6)
        assert 1 <= len(ids) <= 6 and not any(mark in text for mark in chat.template.stop)
    theirs = chat.model.tokenizer.apply_chat_template(
        [{"role": "user", "content": INSTRUCTION}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert conv.prompt().startswith(theirs) or name == "qwen3"  # whose thoughts are only where an answer begins
