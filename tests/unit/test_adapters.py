"""The paper's ablations and LoRA: without Q-Former, three layers; each trains, goes on and answers."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import train
from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import PROJECT, load_config
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.optims import parameter_groups
from minigpt4.common.schema import LoraConfig, ModelConfig
from minigpt4.models.adapters import create_projection
from minigpt4.models.shapes import MiniGPT4Shapes
from minigpt4.serve import build_chat
from tests.golden_set import write_published_files

CAPTIONS = ["a small dog is sitting on the grass", "a house", "the river near a mountain", "two people walk"]
LORA = LoraConfig(r=2, alpha=6, dropout=0.5, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def samples(golden):
    return {"image": torch.from_numpy(golden("forward")["image"]), "text_input": CAPTIONS}


def one_step(model, samples, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=lr)
    model(samples)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()


# -- the projection ---------------------------------------------------------------------------------------------------


def test_three_layers_compute_what_their_names_say():
    torch.manual_seed(0)
    projection = create_projection(6, 10, 3)
    w = projection.state_dict()
    assert {k: tuple(v.shape) for k, v in w.items()} == {
        "0.weight": (10, 6), "0.bias": (10,), "2.weight": (10, 10), "2.bias": (10,), "4.weight": (10, 10),
        "4.bias": (10,),
    }  # fmt: skip
    x = torch.randn(2, 3, 6)
    for i in (0, 2):
        x = F.gelu(x @ w[f"{i}.weight"].T + w[f"{i}.bias"]) if i else F.gelu(F.linear(x, w["0.weight"], w["0.bias"]))
    expected = F.linear(x, w["4.weight"], w["4.bias"])
    torch.manual_seed(0)
    assert torch.equal(create_projection(6, 10, 3)(torch.randn(2, 3, 6)), expected)
    assert type(create_projection(6, 10, 1)) is nn.Linear


def test_three_layers_in_the_model(make_model, samples):
    model = make_model(proj_layers=3, ckpt=None)
    assert set(model.trained_state()) == {f"llama_proj.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    before = {k: v.clone() for k, v in model.trained_state().items()}
    one_step(model, samples)
    assert all(not torch.equal(v, before[k]) for k, v in model.trained_state().items())
    with pytest.raises(CheckpointError, match=r"missing: llama_proj\.0\.bias"):  # a checkpoint of one layer
        make_model(proj_layers=3)


# -- without Q-Former -------------------------------------------------------------------------------------------------


def test_without_qformer_every_token_goes_through_the_projection(make_model, samples, golden):
    model = make_model(has_qformer=False, ckpt=None)
    assert not any("Qformer" in n or "query" in n for n, _ in model.named_parameters())
    assert {k for k, _ in model.trained_state().items()} == {"llama_proj.weight", "llama_proj.bias"}
    seen = torch.from_numpy(golden("forward")["ln_vision_out"])  # (4, N, D_vit), by the original
    assert model.llama_proj.weight.shape[1] == seen.shape[-1]
    out = model.encode_img(samples["image"])
    assert (out - model.llama_proj(seen)).abs().max() < 1e-5
    before = model.llama_proj.weight.detach().clone()
    one_step(model, samples)
    assert (model.llama_proj.weight - before).abs().max() > 1e-3


def test_without_qformer_and_without_its_file(make_model, tmp_path):
    """ln_vision is plain then, and the checkpoint holds it."""
    model = make_model(has_qformer=False, q_former_model=None, ckpt=None)
    assert (model.ln_vision.weight == 1).all() and not model.ln_vision.weight.requires_grad
    names = {"llama_proj.weight", "llama_proj.bias", "ln_vision.weight", "ln_vision.bias"}
    assert set(model.trained_state()) == names
    save_file(model.trained_state(), tmp_path / "c.safetensors")
    again = make_model(has_qformer=False, q_former_model=None, ckpt=str(tmp_path / "c.safetensors"))
    assert torch.equal(again.llama_proj.weight, model.llama_proj.weight)
    with pytest.raises(CheckpointError, match=r"unexpected: Qformer\.bert\.embeddings"):
        with_qformer = make_model(freeze_qformer=False)
        save_file(with_qformer.trained_state(), tmp_path / "q.safetensors")
        make_model(has_qformer=False, ckpt=str(tmp_path / "q.safetensors"))


# -- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_starts_as_the_llm_and_computes_what_it_should(make_model, samples):
    plain, model = make_model().eval(), make_model(lora=LORA).eval()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    layers = len(model.llama_model.get_decoder().layers)
    assert len(trained) == 2 + 2 * 2 * layers
    with torch.no_grad():
        assert torch.equal(plain(samples)["loss"], model(samples)["loss"])
        # one layer by hand: W x + alpha / r * B A x
        layer, x = model.llama_model.get_decoder().layers[0].self_attn.v_proj, torch.randn(2, 5, 64)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        b.normal_()
        expected = F.linear(x, layer.base_layer.weight) + 3.0 * (x @ a.T @ b.T)
        assert (layer(x) - expected).abs().max() < 1e-5
        assert not torch.equal(plain(samples)["loss"], model(samples)["loss"])
    model.train()
    assert layer.lora_dropout["default"].training and not layer.base_layer.training
    assert not torch.equal(model(samples)["loss"], model(samples)["loss"])  # dropout is on
    assert not any(m.training for n, m in model.llama_model.named_modules() if "lora" not in n)


def test_lora_trains_and_its_names_are_stable(make_model, samples, tmp_path):
    model = make_model(lora=LORA)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    one_step(model, samples)  # B moves, for A has no gradient while B is zero
    one_step(model, samples)
    state = model.trained_state()
    assert {k for k in state if "layers.0." in k} == {
        f"llama_model.model.layers.0.self_attn.{m}_proj.lora_{x}.weight" for m in "qv" for x in "AB"
    }
    assert all(state[k].any() for k in state)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    # the frozen weights have the names that they have without LoRA
    assert {k for k in model.published_tensors(["llama_model"]) if "lora" not in k} == set(
        make_model().published_tensors(["llama_model"])
    )

    file = tmp_path / "c.safetensors"
    save_file(state, file)
    again = make_model(lora=LORA, ckpt=str(file)).eval()
    assert set(again.trained_state()) == set(state)
    with torch.no_grad():
        assert torch.equal(again(samples)["loss"], model.eval()(samples)["loss"])
    with pytest.raises(CheckpointError, match=r"holds LoRA matrices, but model\.lora is not set"):
        make_model(ckpt=str(file))
    del state["llama_model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"missing: llama_model.*q_proj\.lora_A\.weight$"):
        make_model(lora=LORA, ckpt=str(file))


def test_peft_opens_our_lora(make_model, samples, tmp_path):
    """With peft's prefix for ours, the file is an adapter that peft itself loads: the same logits."""
    from peft import LoraConfig as PeftLora
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = make_model(lora=LORA)
    one_step(model, samples)
    ours = {k: v for k, v in model.trained_state().items() if k.startswith("llama_model.")}
    save_file(
        {f"base_model.model.{k.removeprefix('llama_model.')}": v for k, v in ours.items()},
        tmp_path / "adapter_model.safetensors",
    )
    PeftLora(r=2, lora_alpha=6, target_modules=LORA.target_modules, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    llm = AutoModelForCausalLM.from_pretrained(model.config.llama_model, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(llm, str(tmp_path)).eval()
    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.no_grad():
        assert (theirs(ids).logits - model.eval().llama_model(ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [{"llama_precision": "bf16"}, {"low_resource": True}, {"low_resource": "4bit"}, {"use_grad_checkpoint": True}],
    ids=str,
)
def test_lora_in_other_llms(make_model, samples, options):
    """In a bf16, a quantized and a recomputing LLM: LoRA is fp32, every matrix gets a gradient."""
    if options.get("low_resource") == "4bit":
        pytest.importorskip("bitsandbytes")
    model = make_model(lora=LORA, **options)
    one_step(model, samples)
    model(samples)["loss"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert set(model.trained_state()) == set(make_model(lora=LORA).trained_state())


def test_lora_on_layers_that_are_not_there(make_model):
    with pytest.raises(
        ConfigError, match=r"target_modules: LlamaForCausalLM has no layer called c_attn; it has .*q_pro"
    ):
        make_model(lora=LoraConfig(target_modules=["q_proj", "c_attn"]))
    with pytest.raises(ConfigError, match=r"model\.lora: peft cannot adapt these layers: Target module LlamaRMSNorm"):
        make_model(lora=LoraConfig(target_modules=["input_layernorm"]))


# -- end to end -------------------------------------------------------------------------------------------------------

KINDS = {
    "no_qformer": {"has_qformer": False},
    "three_layers": {"proj_layers": 3},
    "lora": {"lora": vars(LORA), "freeze_qformer": False},
}


@pytest.fixture(scope="module")
def published(golden_dir, tmp_path_factory) -> dict:
    """The golden set's files as a `model` section, and a stage-2 folder of three pictures."""
    where = tmp_path_factory.mktemp("published")
    files = write_published_files(golden_dir, where)
    (where / "align/image").mkdir(parents=True)
    notes = []
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(where / f"align/image/{i}.jpg")
        notes.append({"image_id": str(i), "caption": f"There is a {colour} ball near the house."})
    (where / "align/filter_cap.json").write_text(json.dumps({"annotations": notes}))
    return {**files, "qformer_kwargs": vars(files["qformer_kwargs"]), "ckpt": None}


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_goes_on_exactly_and_answers(published, tmp_path, no_plot, kind):
    align = str(Path(published["vit_ckpt"]).parent / "align")
    config = {
        "model": {**published, **KINDS[kind], "max_txt_len": 48, "prompt_path": "prompts/alignment.txt"},
        "datasets": {
            "cc_sbu_align": {
                "build_info": {"storage": align},
                "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 56}},
                "text_processor": {"train": {"name": "plain_text"}},
            }
        },
        "run": {
            "init_lr": 1e-2, "max_epoch": 1, "iters_per_epoch": 4, "batch_size_train": 2, "num_workers": 0,
            "log_freq": 1, "device": "cpu", "save_every_steps": 2, "output_dir": str(tmp_path / "run"),
        },
    }  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert train.main(["--cfg-path", str(file)]) == 0
    whole = read_state(tmp_path / "run/checkpoint_0.pth")
    assert ("lora" in kind) == any("lora_A" in name for name in whole)
    half = f"run.resume_ckpt_path={tmp_path / 'run/checkpoint_step_2.pth'}"
    other = f"run.output_dir={tmp_path / 'other'}"
    assert train.main(["--cfg-path", str(file), "--options", half, other]) == 0
    resumed = read_state(tmp_path / "other/checkpoint_0.pth")
    assert whole.keys() == resumed.keys() and all(torch.equal(v, resumed[k]) for k, v in whole.items())

    chat = build_chat(load_config(str(file), [f"model.ckpt={tmp_path / 'run/checkpoint_0.pth'}"], mode="chat"))
    conv = chat.new_conversation()
    chat.upload_img(Image.new("RGB", (64, 64), "red"), conv)
    chat.ask("Describe this image in detail.", conv)
    _, ids = chat.answer(conv, do_sample=False, max_new_tokens=6)
    assert 1 <= len(ids) <= 6


# -- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(PROJECT.glob("train_configs/*/*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_config_is_well_formed(file):
    config = load_config(str(file), mode="show")
    assert config.run.output_dir == f"output/{file.stem}"
    stage = 1 if "stage1" in file.stem else 2
    assert config.run.max_epoch * config.run.iters_per_epoch == (20_000 if stage == 1 else 1_000)
    if stage == 2:
        assert config.model.ckpt.startswith("output/") and config.model.prompt_path


def test_what_the_ablations_change():
    def model(name) -> ModelConfig:
        return load_config(str(PROJECT / f"train_configs/{name}.yaml"), mode="show").model

    base = vars(model("minigpt4_stage1_pretrain"))
    changed = {
        "ablations/no_qformer_stage1": {"has_qformer": False},
        "ablations/three_layers_stage1": {"proj_layers": 3},
        "ablations/trained_qformer_stage1": {"freeze_qformer": False},
    }
    for name, expected in changed.items():
        assert {k: v for k, v in vars(model(name)).items() if v != base[k]} == expected
    assert model("ablations/lora_stage2").lora == LoraConfig(r=16, alpha=32)
    other = model("other_llms/chat_llm_stage2")
    assert (other.conv_template, other.prompt_template, other.end_sym) == ("auto", None, None)


def test_contradictions_are_told(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: {has_qformer: False, freeze_qformer: False, proj_layers: 0, lora: {r: 0, dropout: 1.0, "
        "target_modules: []}, low_resource: True}\nrun: {parallel: fsdp}"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(str(file), mode="show")
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "model.proj_layers: 0 should be at least 1",
        "model.lora.r: 0 should be at least 1",
        "model.lora.dropout: 1.0 should be at least 0 and below 1",
        "model.freeze_qformer: False, but model.has_qformer is False; leave freeze_qformer out",
        "model.lora.target_modules: should be a list of layer names, e.g. [q_proj, v_proj]",
        "model.lora: set, but run.parallel: fsdp shards a frozen LLM of 16 or 32 bit; write ddp, or lora: null",
        "model.low_resource: set, but run.parallel: fsdp shards a frozen LLM of 16 or 32 bit; write ddp, or False",
    ]


def test_the_full_size_on_the_meta_device(golden_dir):
    """The counts that the configs' comments state, of Vicuna-13B's dimensions."""
    from transformers import LlamaConfig

    llm = LlamaConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, intermediate_size=13824)

    def trained(**changes) -> int:
        model = MiniGPT4Shapes(ModelConfig(vit_kwargs={"depth": 1}, **changes), llm)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert trained() == 3_937_280
    assert trained(has_qformer=False) == 7_214_080
    assert trained(proj_layers=3) == 56_376_320
    assert trained(freeze_qformer=False) == 109_099_520
    assert trained(lora=LoraConfig(r=16, alpha=32)) == 3_937_280 + 13_107_200
    assert math.isclose(13_107_200, 40 * 2 * 2 * 16 * 5120)
