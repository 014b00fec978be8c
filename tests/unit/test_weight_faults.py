"""Weight files and LLM folders as people have them: each cause is named, and what is safe to read is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt4.common.checkpoint import load_exact, read_resume, read_state, resume_path, save_checkpoint
from minigpt4.common.errors import CheckpointError
from minigpt4.models.llm import create_llm, load_tokenizer
from minigpt4.models.llm_loading import load_llm

CPU = torch.device("cpu")
ADVICE = "weights_only"


@pytest.fixture
def folder(lay_published, tmp_path) -> Path:
    """The folder of the golden set's LLM."""
    return Path(lay_published(tmp_path / "published")["llama_model"])


def refused(path, words: str, load=lambda folder: load_llm(str(folder), torch.float32, CPU)) -> str:
    with pytest.raises(CheckpointError, match=words) as caught:
        load(path)
    assert ADVICE not in str(caught.value)
    return str(caught.value)


def change(file: Path, **changes) -> None:
    data = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(data | changes))


def poison(file: Path, name: str, value: float, place=(0, 0)) -> None:
    state = load_file(file)
    state[name][place] = value
    save_file(state, file, metadata={"format": "pt"})


# -- NaN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("model.layers.1.mlp.down_proj.weight", float("nan"), (3, 5)),
        ("model.layers.0.self_attn.q_proj.weight", float("-inf"), (0, 0)),
        ("model.embed_tokens.weight", float("nan"), (200, 3)),  # of a token that the check itself does not say
        ("lm_head.weight", float("nan"), (383, 63)),
        ("model.norm.weight", float("inf"), (7,)),
    ],
)
def test_nan_in_the_llm_is_told(folder, name, value, place):
    file = folder / "model.safetensors"
    poison(file, name, value, place)
    said = refused(folder, "computes NaN or infinity: its files are damaged")
    assert said.startswith(f"model.llama_model: {folder}") and "not supported" not in said


def test_finite_weights_that_are_too_much_for_the_dtype(folder):
    file = folder / "model.safetensors"
    poison(file, "model.norm.weight", 3e38, (0,))
    said = refused(folder, r"computes NaN or infinity: .*torch\.float32 is too small")
    assert "another model.llama_precision" in said


@pytest.mark.parametrize("key", ["ckpt", "q_former_model", "vit_ckpt"])
def test_nan_in_a_file_of_the_vision_side_or_the_projection(make_model, tmp_path, key):
    model = make_model()
    name = {"ckpt": "llama_proj.weight", "q_former_model": "query_tokens", "vit_ckpt": "patch_embed.proj.weight"}[key]
    state = {k: v.clone() for k, v in read_state(getattr(model.config, key)).items()}
    state[name].view(-1)[3] = float("nan")
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=rf"bad\.pth cannot be used: {name} holds NaN or infinity; it is damaged"):
        make_model(**{key: str(tmp_path / "bad.pth")})


def test_numbers_beyond_the_models_dtype_are_named_and_nothing_is_copied():
    targets = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float16)}
    state = {"a": torch.ones(2), "b": torch.tensor([1.0, 1e6])}
    with pytest.raises(CheckpointError, match=r"w\.pth cannot be used: b holds numbers beyond torch\.float16"):
        load_exact(targets, state, "w.pth")
    assert not targets["a"].any()


# -- quantized by others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "said", "how"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, "awq"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}}, "compressed"),
    ],
)
def test_weights_that_are_quantized_already(folder, file, said, how):
    change(folder / file, **said)
    words = rf"{folder} holds weights quantized by {how}.*, which are not supported; write the folder of the same LLM"
    refused(folder, words)
    refused(folder, words, load_tokenizer_of)
    refused(folder, words, lambda f: create_llm(str(f), torch.float16))


def load_tokenizer_of(folder):
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("said", [{"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_a_config_that_no_llm_can_be_built_from(folder, said):
    change(folder / "config.json", **said)
    refused(folder, "no causal LM can be built from its config.json", lambda f: create_llm(str(f), torch.float16))


# -- tokenizer files ------------------------------------------------------------------------------------------------

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:9e5\nsize 499723\n"


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json", "special_tokens_map.json", "vocab.json"])
def test_a_tokenizer_file_that_is_a_pointer(folder, file):
    (folder / file).write_text(LFS)
    refused(folder, rf"{folder / file} is a git-lfs pointer, not weights.*; run `git lfs pull`", load_tokenizer_of)


@pytest.mark.parametrize("content", ["", "<!DOCTYPE html><html>", "{"])
def test_a_tokenizer_file_that_is_something_else(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    refused(folder, r"tokenizer_config\.json is (an empty file|a web page|not a JSON object)", load_tokenizer_of)


@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize("form", [lambda t: t, lambda t: {"content": t, "lstrip": False}])
def test_empty_special_tokens(folder, file, form):
    (folder / "special_tokens_map.json").write_text("{}")
    change(folder / file, bos_token=form(""), eos_token=form(""), unk_token=form(""))
    refused(folder, rf'{folder / file}: bos_token, eos_token, unk_token empty, .*; write "<s>"', load_tokenizer_of)


def test_special_tokens_that_the_other_file_fills(folder):
    change(folder / "tokenizer_config.json", bos_token="", eos_token="", unk_token="")
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}')
    assert load_tokenizer(str(folder)).bos_token == "<s>"


# -- formats --------------------------------------------------------------------------------------------------------


def test_a_safetensors_file_of_another_name_and_the_other_way_round(tmp_path):
    state = {"llama_proj.weight": torch.arange(6.0).reshape(2, 3)}
    for name in ("c.pth", "c.bin", "c"):
        save_file(state, tmp_path / name)
        assert torch.equal(read_state(tmp_path / name)["llama_proj.weight"], state["llama_proj.weight"])
    torch.save({"model": state}, tmp_path / "c.safetensors")
    assert torch.equal(read_state(tmp_path / "c.safetensors")["llama_proj.weight"], state["llama_proj.weight"])


def test_a_resume_file_that_holds_code_is_no_advice(tmp_path):
    checkpoint = tmp_path / "checkpoint_0.pth"
    save_checkpoint(checkpoint, {"llama_proj.weight": torch.ones(1)}, {"epoch": 0, "step": 1}, {})
    torch.save({"step": 1, "path": Path("x")}, resume_path(checkpoint))
    refused(checkpoint, r"resume\.pt: cannot be read: it holds more than tensors and plain values$", read_resume)


def test_a_lora_checkpoint_without_lora_in_the_config(make_model, tmp_path):
    from minigpt4.common.schema import LoraConfig

    model = make_model(lora=LoraConfig(r=2, target_modules=["v_proj", "q_proj"]))
    save_file({k: v.contiguous() for k, v in model.trained_state().items()}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError) as caught:
        make_model(ckpt=str(tmp_path / "lora.safetensors"))
    assert str(caught.value) == (
        f"{tmp_path}/lora.safetensors holds LoRA matrices, but model.lora is not set: write it as in training"
    )
