"""What a file really is, whatever it is called: made at tiny dimensions with the real names."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.checkup.doctor.files import stage_of
from minigpt4.common.identify import KINDS, NO_WEIGHTS, identify

W = torch.zeros(4, 4)
VIT = {"cls_token": torch.zeros(1, 1, 8), "pos_embed": torch.zeros(1, 17, 8),
       "patch_embed.proj.weight": torch.zeros(8, 3, 14, 14), "blocks.0.attn.qkv.weight": torch.zeros(24, 8),
       "blocks.1.attn.qkv.weight": torch.zeros(24, 8)}  # fmt: skip
QFORMER = {"query_tokens": torch.zeros(1, 5, 6), "ln_vision.weight": torch.zeros(8),
           "Qformer.bert.encoder.layer.0.crossattention.self.key.weight": torch.zeros(6, 8),
           "Qformer.bert.encoder.layer.1.attention.self.key.weight": torch.zeros(6, 6)}  # fmt: skip
LLM = {"model.embed_tokens.weight": torch.zeros(9, 4), "model.layers.0.self_attn.q_proj.weight": W,
       "model.layers.1.self_attn.q_proj.weight": W, "lm_head.weight": torch.zeros(9, 4)}  # fmt: skip
PROJECTION = {"llama_proj.weight": torch.zeros(4, 6), "llama_proj.bias": torch.zeros(4)}
STATES = {
    "eva_vit": VIT | {"blocks.0.attn.q_bias": torch.zeros(8)},
    "vit": VIT,
    "vision": {"conv_stem.weight": torch.zeros(8, 3, 3, 3), "bn1.weight": W},
    "qformer": QFORMER | {"t5_proj.weight": W},
    "minigpt4": PROJECTION | {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
                              "Qformer.bert.embeddings.position_ids": torch.zeros(1, 5)},
    "llm": LLM,
    "llm_meta": {"tok_embeddings.weight": W, "layers.0.attention.wq.weight": W, "norm.weight": W[0]},
    "blip2_transformers": {"query_tokens": W, "qformer.layernorm.weight": W, "language_projection.weight": W},
    "adapter": {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": W},
    "unknown": {"encoder.w": W},
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("form", ["safetensors", "torch", "torch in model", "torch before zip"])
def test_kinds(tmp_path, kind, form):
    state = STATES[kind]
    file = tmp_path / "eva_vit_g.pth"  # the name says nothing
    if form == "safetensors":
        save_file({k: v.clone() for k, v in state.items()}, file)
    elif form == "torch before zip":
        torch.save(state, file, _use_new_zipfile_serialization=False)
    else:
        torch.save({"model": state, "epoch": 3} if "model" in form else state, file)
    facts = identify(file)
    assert facts.kind == kind
    assert {n: (t.shape, t.dtype) for n, t in facts.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    assert facts.facts == ({"epoch": 3} if "model" in form else {})
    assert facts.parameters == sum(t.numel() for t in state.values())
    assert facts.describe().startswith(KINDS[kind])


def test_values_are_read_on_demand(tmp_path):
    state = {"model.norm.weight": torch.arange(4.0), **LLM}
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "a")
    torch.save(state, tmp_path / "b")
    for name in "ab":
        assert torch.equal(identify(tmp_path / name).value("model.norm.weight"), torch.arange(4.0))
    assert identify(tmp_path / "a").tensors["model.norm.weight"].is_meta


def test_names_below_a_prefix(tmp_path):
    torch.save({f"visual_encoder.{k}": v for k, v in STATES["eva_vit"].items()}, tmp_path / "x")
    assert identify(tmp_path / "x").kind == "eva_vit"


def test_a_checkpoint_with_a_trained_qformer_and_more_layers(tmp_path):
    layers = {"llama_proj.0.weight": torch.zeros(4, 6), "llama_proj.2.weight": torch.zeros(4, 4)}
    torch.save({"model": QFORMER | layers}, tmp_path / "x")
    facts = identify(tmp_path / "x")
    assert (facts.kind, facts.llm_width) == ("minigpt4", 4)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def _saved(data, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer, **options)
    return buffer.getvalue()


def _safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(400)


class Harm:
    def __reduce__(self):
        return print, ("run!",)


@pytest.mark.parametrize(
    ("content", "kind", "note"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2025239905\n", "lfs", "git-lfs"),
        (b"\n<!DOCTYPE html><html><head><title>Hub - Log in</title>", "html", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "html", ""),
        (b"Entry not found", "text", "Entry not found"),
        (b'{"error": "gated repo"}', "text", "gated repo"),
        (b"", "empty", ""),
        (b"\x1f\x8b\x08 and so on", "damaged", ""),
        (_zip(), "damaged", ""),
        (b"GGUF\x03\x00\x00\x00", "gguf", ""),
        (_saved(VIT)[:3000], "truncated", "3.0 kB are there"),
        (_saved(VIT, _use_new_zipfile_serialization=False)[:-400], "truncated", ""),
        (_safetensors()[:-100], "truncated", " of "),
        (_safetensors()[:30], "truncated", "header"),
        (_safetensors()[:8] + b"{" * 80, "damaged", "safetensors header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "damaged", ""),
        (pickle.dumps({"model": Harm()}), "code", "torch did not write"),
        (_saved({"model": Harm()}), "code", "print"),
        (_saved([1, 2]), "unknown", "a list"),
        (_saved({"optimizer": {"state": {}}, "scaler": None, "step": 3}), "resume", ""),
        (_saved({"state": {0: {"exp_avg": W}}, "param_groups": []}), "resume", ""),
    ],
)  # fmt: skip
def test_what_is_no_weight_file(tmp_path, capsys, content, kind, note):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content)
    facts = identify(file)
    assert facts.kind == kind, facts
    assert note in facts.describe()
    assert "run!" not in capsys.readouterr().out


def test_folders_and_nothing(tmp_path):
    assert identify(tmp_path).kind == "folder"
    assert identify(tmp_path / "none").kind == "missing"
    assert {"folder", "missing"} <= NO_WEIGHTS


def test_only_the_header_is_read(tmp_path):
    """26 GB with nothing on the disk behind them."""
    shape = [1_300_000, 10_000]
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "F16", "shape": shape,
                                                       "data_offsets": [0, 26_000_000_000]}}).encode()  # fmt: skip
    with (tmp_path / "sparse").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 26_000_000_000)
    facts = identify(tmp_path / "sparse")
    assert facts.tensors["model.embed_tokens.weight"].shape == (1_300_000, 10_000)
    assert "13.0B numbers, 26.0 GB" in facts.describe()


@pytest.mark.parametrize(
    ("config", "stage", "why"),
    [
        ({"datasets": {"laion": {}, "cc_sbu": {}}, "model": {"end_sym": None}}, 1, "laion and cc_sbu"),
        ({"datasets": {"cc_sbu_align": {}}, "model": {}}, 2, "cc_sbu_align"),
        ({"datasets": {"mine": {}}, "model": {"prompt_path": "prompts/alignment.txt"}}, 2, "on mine"),
        ({"datasets": {"a": {"prompt_path": None}, "b": {"prompt_path": "p.txt"}}, "model": {}}, 2, "a and b"),
        ({"run": {"init_lr": 1e-2}}, None, "no config of its model and data"),
        (None, None, "no config of its model and data"),
    ],
)
def test_the_stage_is_told_by_the_config_inside(config, stage, why):
    found, said = stage_of({"config": config} if config else {"epoch": 3})
    assert found == stage
    assert why in said


def test_the_originals_own_checkpoint(golden_dir):
    facts = identify(golden_dir / "checkpoint_1.pth")
    assert (facts.kind, facts.llm_width) == ("minigpt4", 64)
    assert facts.facts["epoch"] == 1
    assert stage_of(facts.facts)[0] is None  # its config holds the run alone
