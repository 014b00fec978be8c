"""Which dtype each part computes in, on GPUs that are not here: capabilities, kernels and devices are stood in for."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minigpt4.common import precision
from minigpt4.common.errors import ConfigError
from minigpt4.common.precision import fast_half_dtype, resolve_precision
from minigpt4.common.schema import Config, ModelConfig, RunConfig
from minigpt4.models.llm_loading import load_llm, quantization_config, stored_dtype
from minigpt4.models.mini_gpt4 import MiniGPT4
from minigpt4.runners.sharding import shard_llm
from minigpt4.tasks import ImageTextPretrain, image_text_pretrain

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def gpu(monkeypatch):
    """gpu(7, 5): from then on, PyTorch sees a GPU of compute capability 7.5, which emulates bf16 if it is old."""

    def be(major: int, minor: int = 0, name: str = "NVIDIA Something"):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        properties = SimpleNamespace(major=major, minor=minor, name=name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # by emulation

    return be


@pytest.mark.parametrize(("capability", "half"), [((7, 0), FP16), ((7, 5), FP16), ((8, 0), BF16), ((9, 0), BF16)])
def test_bf16_only_where_the_gpu_has_it(gpu, capability, half):
    gpu(*capability)
    assert torch.cuda.is_bf16_supported()  # emulation counts, says PyTorch
    assert fast_half_dtype(CUDA) == half
    found = resolve_precision(ModelConfig(), CUDA, RunConfig())
    assert (found.amp, found.llm, found.vit) == (half, half, FP16)


def test_the_line_for_people(gpu):
    gpu(8, 0, "NVIDIA A100-SXM4-80GB")
    assert str(resolve_precision(ModelConfig(), CUDA, RunConfig())) == (
        "amp bf16, LLM bf16, ViT fp16 (NVIDIA A100-SXM4-80GB)"
    )


@pytest.mark.parametrize(("seconds", "wanted"), [({FP32: 2.0, BF16: 1.0}, BF16), ({FP32: 1.0, BF16: 1.45}, FP32)])
def test_a_cpu_is_measured(monkeypatch, seconds, wanted):
    """With AVX512-BF16 but no AMX bf16 is slower than fp32, whatever the instruction flags say."""
    monkeypatch.setattr(precision, "_matmul_seconds", seconds.get)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    precision.cpu_bf16_is_faster.cache_clear()
    try:
        found = resolve_precision(ModelConfig(vit_precision="bf16"), CPU, RunConfig())
        assert (found.amp, found.llm, found.vit) == (None, wanted, wanted)
        assert f"bf16 is {'faster' if wanted == BF16 else 'slower'} than fp32" in str(found)
    finally:
        precision.cpu_bf16_is_faster.cache_clear()


def test_the_measurement_takes_milliseconds():
    assert 0 < precision._matmul_seconds(FP32) < 0.5


@pytest.mark.parametrize(
    ("stored", "capability", "wanted"),
    [(FP16, (8, 0), FP16), (BF16, (8, 0), BF16), (FP32, (8, 0), BF16), (FP16, (7, 5), FP16), (BF16, (7, 5), FP16)],
)
def test_a_chat_keeps_the_files_dtype(gpu, stored, capability, wanted):
    gpu(*capability)
    assert resolve_precision(ModelConfig(), CUDA, stored=stored).llm == wanted
    assert resolve_precision(ModelConfig(llama_precision="fp32"), CUDA, stored=stored).llm == FP32  # what is written


@pytest.mark.parametrize(
    ("run", "amp"),
    [({"amp": False}, "no"), ({}, "no"), ({"amp_dtype": "bf16"}, "bf16"), ({"amp": False, "amp_dtype": "bf16"}, "no")],
)
def test_amp_on_cpu(run, amp):
    assert resolve_precision(ModelConfig(), CPU, RunConfig(**run)).mixed_precision == amp


@pytest.mark.parametrize(
    ("llm", "run", "instead"),
    [
        ("fp16", {}, "run.amp_dtype: fp16"),
        ("fp32", {}, "run.amp: False"),
        ("bf16", {"amp_dtype": "fp16"}, "run.amp_dtype: bf16"),
    ],
)
def test_an_llm_of_another_dtype_than_autocast_is_refused(gpu, llm, run, instead):
    gpu(8, 0)
    message = rf"model\.llama_precision: {llm}, but autocast .* copy every matrix .*: auto, or {instead}$"
    with pytest.raises(ConfigError, match=message):
        resolve_precision(ModelConfig(llama_precision=llm), CUDA, RunConfig(**run))
    off = resolve_precision(ModelConfig(llama_precision=llm), CUDA, RunConfig(amp=False))
    assert off.amp is None and off.llm == precision.DTYPES[llm]


def test_auto_follows_amp(gpu):
    gpu(9, 0)
    assert resolve_precision(ModelConfig(), CUDA, RunConfig(amp_dtype="fp16")).llm == FP16
    assert resolve_precision(ModelConfig(), CPU, RunConfig(amp_dtype="bf16")).llm == BF16


# -- a ViT that is trained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_a_trained_vit_computes_in_autocasts_dtype(make_model, golden, frozen):
    """Its weights stay fp32. A frozen one computes in its own."""
    model = make_model(freeze_vit=frozen)
    seen = []
    model.visual_encoder.blocks[0].mlp.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    with torch.autocast("cpu", BF16):
        model.encode_img(torch.from_numpy(golden("forward")["image"]))
    assert seen == [FP32 if frozen else BF16]
    assert model.visual_encoder.blocks[0].attn.proj.weight.dtype == FP32


def test_checkpointing_reaches_a_trained_vit(make_model, golden):
    samples = {"image": torch.from_numpy(golden("forward")["image"])[:1], "text_input": ["a dog"]}
    gradients = []
    for recompute in (False, True):
        model, calls = make_model(freeze_vit=False, use_grad_checkpoint=recompute), []
        batch = model.build_batch(samples)
        model.visual_encoder.blocks[0].attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(batch)["loss"].backward()
        gradients.append(model.visual_encoder.patch_embed.proj.weight.grad)
        assert len(calls) == 1 + recompute
    assert torch.allclose(*gradients, atol=1e-6)


# -- 8 bit --------------------------------------------------------------------------------------------------------


def test_8_bit_on_cuda_is_llm_int8():
    """Columns with values above 6 stay in 16 bit; the head is not quantized."""
    config = quantization_config(8, FP16, CUDA)
    assert config.load_in_8bit and config.llm_int8_threshold == 6.0 and not config.llm_int8_has_fp16_weight
    four = quantization_config(4, BF16, CUDA)
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", BF16)


def test_8_bit_keeps_outliers(lay_published, tmp_path, monkeypatch):
    """bitsandbytes' own CPU path runs what CUDA would: one input column of 60 among small ones."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from minigpt4.models import llm_loading

    path = lay_published(tmp_path)["llama_model"]
    monkeypatch.setattr(llm_loading, "quantization_config", lambda bits, *_: quantization_config(bits, FP16, CUDA))
    quantized, plain = load_llm(path, FP32, CPU, low_resource=True), load_llm(path, FP32, CPU)
    layer, exact = (m.model.layers[0].mlp.up_proj for m in (quantized, plain))
    assert isinstance(layer, bitsandbytes.nn.Linear8bitLt)
    torch.manual_seed(0)
    x = torch.randn(16, 64)
    x[:, 3] = 60.0
    ordinary = exact.weight.clone()
    ordinary[:, 3] = 0  # the answer without the outlier's share
    error = (layer(x).float() - exact(x)).norm() / (x @ ordinary.T).norm()
    assert error < 0.05  # 0.2 without the threshold


def test_a_chat_in_8_bit_computes_in_the_files_dtype(gpu, lay_published, tmp_path):
    gpu(8, 0)
    from transformers import AutoModelForCausalLM

    path = lay_published(tmp_path)["llama_model"]
    AutoModelForCausalLM.from_pretrained(path, dtype=FP16).save_pretrained(path)
    assert stored_dtype(path) == FP16
    assert resolve_precision(ModelConfig(low_resource=True), CUDA, stored=stored_dtype(path)).llm == FP16


# -- devices ------------------------------------------------------------------------------------------------------


def test_segments_of_an_llm_on_another_device(make_model):
    """model.device_map may put the embeddings elsewhere than the images: ids go there, embeddings come back."""
    model = make_model()
    moves = []

    class Elsewhere(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.weight = SimpleNamespace(device=torch.device("cuda:1"), dtype=table.weight.dtype)
            self.table = table

        def forward(self, ids):
            return Moved(self.table(ids.tensor))

    class Moved:
        """Stands in for a tensor on the other GPU."""

        def __init__(self, tensor):
            self.tensor = tensor

        def to(self, device):
            moves.append(device)
            return self.tensor

    class Ids:
        def to(self, device):
            moves.append(device)
            return Moved(torch.tensor([5]))

    table = model.llama_model.get_input_embeddings()
    model.llama_model.set_input_embeddings(Elsewhere(table))
    assert torch.equal(model.embed_ids(Ids()), table(torch.tensor([5])))
    assert moves == [torch.device("cuda:1"), CPU]


# -- FSDP ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "apart"), [(1, False), (2, True)])
def test_one_process_of_fsdp_is_as_ddp(monkeypatch, world, apart):
    monkeypatch.setattr(image_text_pretrain, "world_size", lambda: world)
    seen = {}
    monkeypatch.setattr(image_text_pretrain, "build_model", lambda *_, **options: seen.update(options))
    ImageTextPretrain(Config(run=RunConfig(parallel="fsdp"))).build_model(CPU)
    assert seen["llm_apart"] is apart


def test_an_llm_to_be_sharded_stays_in_its_files(lay_published, tmp_path):
    """Processes share the mapped pages of a file; a cast would give each a copy of the whole LLM."""
    keys = lay_published(tmp_path)
    half = precision.Precision(None, BF16, FP32, "")
    apart = MiniGPT4(ModelConfig(**keys), precision=half, llm_apart=True)
    assert apart.llama_model.dtype == FP32  # that of the files
    assert MiniGPT4(ModelConfig(**keys), precision=half).llama_model.dtype == BF16


def test_sharding_casts_layer_by_layer(lay_published, tmp_path):
    """In one process of gloo: the weights are those of an LLM that was cast as it was read."""
    path = lay_published(tmp_path)["llama_model"]
    cast, sharded, ids = load_llm(path, BF16, CPU), load_llm(path, FP32, CPU), torch.tensor([[1, 20, 33, 47]])
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard_llm(sharded, CPU, BF16, 1)
        assert {p.dtype for p in sharded.parameters()} == {BF16}
        assert sharded.model.rotary_emb.inv_freq.dtype == FP32
        assert torch.equal(sharded(ids).logits, cast(ids).logits)
    finally:
        torch.distributed.destroy_process_group()


# -- attention and compiling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["eager", "sdpa"])
def test_the_attention_that_is_written(make_model, written):
    assert make_model(attn_implementation=written).llama_model.config._attn_implementation == f"unpadded_{written}"
    assert make_model().llama_model.config._attn_implementation == "unpadded_eager"  # auto, on a CPU


def test_flash_attention_that_is_not_installed(make_model):
    with pytest.raises(ConfigError, match=r"model\.attn_implementation: flash_attention_2: .*be installed"):
        make_model(attn_implementation="flash_attention_2")


def test_every_layer_is_compiled(make_model, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **keys: compiled.append(type(self).__name__))
    make_model().compile_layers()
    assert compiled == ["LlamaDecoderLayer"] * 2 + ["EvaBlock"] * 2
