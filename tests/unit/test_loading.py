"""Weights of every format and place -> the same model: cast, sharded, mapped, GGUF, 8 and 4 bit, spread, on meta."""

import json
import random
import shutil
from pathlib import Path

import gguf
import pytest
import sentencepiece
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig

from minigpt4.checkup.plan.shapes import find_llm
from minigpt4.common.checkpoint import atomic_save, check_loaded, empty_weights, load_exact, named_tensors, read_state
from minigpt4.common.errors import CheckpointError
from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.chat import Chat
from minigpt4.models.llm import create_llm, load_tokenizer
from minigpt4.models.llm_loading import load_llm
from minigpt4.models.mini_gpt4 import MiniGPT4
from minigpt4.models.shapes import MiniGPT4Shapes
from tests.golden_set import write_published_files

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 20, 33, 47, 300, 5, 9]])


@pytest.fixture(scope="module")
def published(golden_dir, tmp_path_factory):
    """A golden set's weights as the files a user has, and ModelConfig's keys for them."""
    return write_published_files(golden_dir, tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy of the LLM's folder, to be changed."""
    return Path(shutil.copytree(published["llama_model"], tmp_path / "llm"))


@pytest.fixture(scope="module")
def weights(published) -> dict[str, torch.Tensor]:
    return load_file(Path(published["llama_model"]) / "model.safetensors")


@pytest.fixture(scope="module")
def llm(published):
    return load_llm(published["llama_model"], torch.float32, CPU)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits.float()


def write_shards(folder: Path, weights: dict, form: str, dtype: torch.dtype) -> list[Path]:
    """Replace the folder's weights by two shards and their index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, where, files = sorted(weights), {}, []
    for i in range(2):
        shard = {name: weights[name].to(dtype) for name in names[i::2]}
        stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
        files.append(folder / f"{stem}-0000{i + 1}-of-00002.{form}")
        torch.save(shard, files[-1]) if form == "bin" else save_file(shard, files[-1], metadata={"format": "pt"})
        where |= dict.fromkeys(shard, files[-1].name)
    index = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}[form]
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files


# -- the LLM's folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shards_of_any_dtype_become_the_models(folder, weights, form, stored, dtype):
    write_shards(folder, weights, form, stored)
    model = load_llm(str(folder), dtype, CPU)
    found = model.state_dict()
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], tensor.to(stored).to(dtype)) for name, tensor in weights.items())
    assert model.dtype == model.config.dtype == dtype
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32  # bf16 would bend every position
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="read from Linux's /proc")
def test_weights_in_the_right_dtype_stay_mapped_and_others_are_copies(folder, published):
    weights = [load_llm(str(folder), dtype, CPU).lm_head.weight for dtype in (torch.float32, torch.bfloat16)]
    file = str(folder / "model.safetensors")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    ranges = [[int(end, 16) for end in fields[0].split("-")] for fields in maps]
    assert [any(low <= w.data_ptr() < high for low, high in ranges) for w in weights] == [True, False]


def damage_missing(folder, files, weights):
    tensors = read_state(files[0])
    save_file(dict(list(tensors.items())[1:]), files[0], metadata={"format": "pt"})


def damage_unexpected(folder, files, weights):
    save_file(read_state(files[0]) | {"model.extra.weight": torch.ones(1)}, files[0], metadata={"format": "pt"})


def damage_shape(folder, files, weights):
    save_file(read_state(files[0]) | {"lm_head.weight": torch.ones(3, 64)}, files[0], metadata={"format": "pt"})


def damage_gone(folder, files, weights):
    files[1].unlink()


def damage_lfs(folder, files, weights):
    files[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9976576152\n")


def damage_html(folder, files, weights):
    files[1].write_text("<!DOCTYPE html><html><title>Sign in</title></html>")


def damage_index(folder, files, weights):
    (folder / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"does not fit its config\.json: missing: lm_head\.weight"),
        (damage_unexpected, r"does not fit its config\.json: unexpected: model\.extra\.weight"),
        (damage_shape, r"of another shape: lm_head\.weight: \(3, 64\) in the file, \(384, 64\) in the model"),
        (damage_gone, r"1 of the 2 files .* are missing: model-00002-of-00002\.safetensors; fetch them too"),
        (damage_lfs, r"model-00002-of-00002\.safetensors is a git-lfs pointer, not weights; run `git lfs pull`"),
        (damage_html, r"model-00002-of-00002\.safetensors is a web page, not weights; .*fetch the file itself"),
        (damage_index, r"model\.safetensors\.index\.json is not a JSON object; download it again"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, weights, damage, message):
    damage(folder, write_shards(folder, weights, "safetensors", torch.float32), weights)
    with pytest.raises(CheckpointError, match=message):
        load_llm(str(folder), torch.float32, CPU)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("added_tokens.json", {"[PAD]": 384}, r"the id of the tokenizer's pad_token '\[PAD\]' is 384"),
        ("config.json", {"vocab_size": 320}, r"the largest id of the tokenizer is 383"),
    ],
)  # fmt: skip
def test_an_id_outside_the_vocabulary_is_named(folder, published, file, change, message):
    written = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**written, **change}))
    pad = "[PAD]" if "[PAD]" in change else None
    size = change.get("vocab_size", 384)
    with pytest.raises(
        CheckpointError, match=rf"{message}, outside the LLM's vocabulary, whose ids are 0 to {size - 1}"
    ):
        MiniGPT4(ModelConfig(**{**published, "llama_model": str(folder), "pad_token": pad}))


def test_an_unused_token_outside_the_vocabulary_and_an_id_of_none_do_no_harm(folder):
    (folder / "added_tokens.json").write_text('{"<pad>": 384}')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == 2 and len(tokenizer) == 385
    load_llm(str(folder), torch.float32, CPU)


def test_no_code_of_a_bin_file_runs(folder, weights, tmp_path):
    files = write_shards(folder, weights, "bin", torch.float32)
    ran = tmp_path / "ran"

    class Bad:
        def __reduce__(self):
            return Path.touch, (ran,)

    torch.save({"lm_head.weight": Bad()}, files[0])
    with pytest.raises(CheckpointError, match=r"pytorch_model-00001-of-00002\.bin is a pickle that would run code"):
        load_llm(str(folder), torch.float32, CPU)
    assert not ran.exists()


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: none of model\.safetensors, "):
        load_llm(str(folder), torch.float32, CPU)


# -- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, llm, tokenizer_model: Path, kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """A LLaMA as llama.cpp's converter writes it: rotary rows permuted, sentencepiece's vocabulary inside."""
    config, pieces = llm.config, sentencepiece.SentencePieceProcessor(str(tokenizer_model))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    ids = range(pieces.vocab_size())
    writer.add_token_list([pieces.id_to_piece(i).encode() for i in ids])
    writer.add_token_scores([pieces.get_score(i) for i in ids])
    kinds = gguf.TokenType
    writer.add_token_types([
        int(kinds.UNKNOWN if pieces.is_unknown(i) else kinds.CONTROL if pieces.is_control(i)
            else kinds.BYTE if pieces.is_byte(i) else kinds.NORMAL) for i in ids
    ])  # fmt: skip
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in llm.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        stem, _, last = name.rpartition(".")
        array = tensor.numpy()
        if kind and array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(f"{names.get_name(stem)}.{last}", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{last}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(llm, published, tmp_path_factory):
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf", llm, Path(published["llama_model"], "tokenizer.model")
    )


def test_a_gguf_file_is_the_same_llm(gguf_file, llm):
    model = load_llm(str(gguf_file), torch.float32, CPU)
    assert torch.equal(logits(model), logits(llm))
    assert model.config.rope_parameters["rope_theta"] == llm.config.rope_parameters["rope_theta"]
    assert create_llm(str(gguf_file), torch.bfloat16).get_input_embeddings().weight.shape == (384, 64)


def test_the_planner_takes_a_gguf_files_sizes(gguf_file):
    sizes, said = find_llm(None, str(gguf_file))
    assert (sizes.hidden_size, sizes.vocab_size, said) == (64, 384, f"LLM: {gguf_file}")


def test_a_quantized_gguf_file(llm, published, tmp_path):
    file = write_gguf(tmp_path / "q.gguf", llm, Path(published["llama_model"], "tokenizer.model"),
                      gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    found = logits(load_llm(str(file), torch.float32, CPU))
    assert 0 < (found - logits(llm)).abs().max() < 0.05 * logits(llm).abs().max()


def test_a_gguf_files_tokenizer_reads_as_the_folders(gguf_file, published):
    ours, theirs = load_tokenizer(str(gguf_file)), load_tokenizer(published["llama_model"])
    rng = random.Random(0)
    parts = ["a", "dog", " ", "  ", "###", "Human", ":", "<Img>", "</s>", "\n", "é", "✓", "the", "ing", "12"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randint(1, 8)))
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text  # with BOS
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.padding_side) == (1, 2, 2, "right")


def test_the_whole_model_on_a_gguf_file(gguf_file, published, golden):
    image = torch.from_numpy(golden("forward")["image"])
    samples = {"image": image, "text_input": ["a dog", " a house", "x", "the river"]}
    with torch.no_grad():
        ours, theirs = (MiniGPT4(ModelConfig(**published | {"llama_model": where})).eval()(samples)["loss"]
                        for where in (str(gguf_file), published["llama_model"]))  # fmt: skip
    assert torch.equal(ours, theirs)


def test_a_gguf_file_that_is_none(tmp_path):
    (tmp_path / "m.gguf").write_text("<html>")
    with pytest.raises(CheckpointError, match=r"m\.gguf is a web page, not weights"):
        load_llm(str(tmp_path / "m.gguf"), torch.float32, CPU)


# -- 8 and 4 bit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "most", "dtype"), [(True, 0.1, torch.float32), ("4bit", 0.5, torch.float32),
                                                        ("8bit", 0.1, torch.bfloat16)])  # fmt: skip
def test_low_resource(published, llm, setting, most, dtype):
    if setting == "4bit":
        pytest.importorskip("bitsandbytes")
    model = load_llm(published["llama_model"], dtype, CPU, low_resource=setting)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    plain = {name for name, m in linears.items() if type(m) is nn.Linear and type(m.weight) is nn.Parameter}
    assert plain == {"lm_head"} and len(linears) == 1 + 7 * 2
    assert model.dtype == dtype
    distance = (logits(model) - logits(llm)).norm() / logits(llm).norm()
    assert 0 < distance < most
    embeds = torch.randn(1, 5, 64, dtype=dtype, requires_grad=True)  # training goes through it, to the image
    model(inputs_embeds=embeds).logits.float().sum().backward()
    assert embeds.grad.abs().max() > 0


def test_four_bits_are_half_a_byte(published):
    pytest.importorskip("bitsandbytes")
    model = load_llm(published["llama_model"], torch.float32, CPU, low_resource="4bit")
    assert model.model.layers[0].mlp.up_proj.weight.nbytes == 172 * 64 // 2
    assert model.is_loaded_in_4bit


# -- spread over devices --------------------------------------------------------------------------------------------


def test_an_llm_spread_over_memory_and_disk_answers_the_same(published, golden, tiny_model):
    keys = published | {"device_map": "auto", "max_memory": {"cpu": 400_000}}
    model = MiniGPT4(ModelConfig(**keys)).eval()
    places = set(model.llama_model.hf_device_map.values())
    assert places == {"cpu", "disk"}
    assert any(p.is_meta for p in model.llama_model.parameters())  # those on disk: still not collapsed
    assert not any(p.is_meta for n, p in model.named_parameters() if not n.startswith("llama_model"))
    answers = []
    for each in (model, tiny_model):
        chat = Chat(each, None)
        conv = chat.new_conversation()
        chat.upload_img(torch.from_numpy(golden("chat")["chat_image"]), conv)
        chat.ask("What is this?", conv)
        answers.append(chat.answer(conv, do_sample=False, max_new_tokens=5)[1])
    assert answers[0] == answers[1] and len(answers[0]) == 5


# -- built without memory -------------------------------------------------------------------------------------------


def test_the_whole_model_on_the_meta_device(published, tiny_model, tmp_path):
    (tmp_path / "llm").mkdir()
    shutil.copy(Path(published["llama_model"], "config.json"), tmp_path / "llm")
    missing = {"vit_ckpt": "gone.pth", "q_former_model": "gone.pth", "ckpt": "gone.pth"}
    keys = published | missing | {"llama_model": str(tmp_path / "llm"), "prompt_path": "prompts/alignment.txt"}
    model = MiniGPT4Shapes(ModelConfig(**keys))
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert model.tokenizer is None and len(model.prompt_list) == 4
    shapes = {name: (t.shape, t.dtype) for name, t in model.published_tensors().items()}
    assert shapes == {name: (t.shape, t.dtype) for name, t in tiny_model.published_tensors().items()}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"llama_proj.weight", "llama_proj.bias"}


def test_a_config_stands_in_for_the_llms_folder(published):
    llm_config = LlamaConfig(hidden_size=96, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = MiniGPT4Shapes(ModelConfig(**published | {"llama_model": "gone"}), llm_config)
    assert model.llama_proj.weight.shape == (96, 64)
    assert next(create_llm(llm_config, torch.float16).parameters()).dtype == torch.float16


def test_a_vit_loaded_onto_nothing_is_the_vit_built_and_filled():
    """Swin's masks are computed where its parameters are: on the meta device they would stay empty."""
    kwargs = dict(img_size=64, embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=4, num_classes=0)
    real = timm.create_model("swin_tiny_patch4_window7_224", **kwargs).eval()
    with empty_weights():
        empty = timm.create_model("swin_tiny_patch4_window7_224", **kwargs).eval()
    assert any(b.is_meta for b in empty.buffers())
    before = torch.random.get_rng_state()
    load_exact(named_tensors(empty), {k: v.clone() for k, v in named_tensors(real).items()}, "w.pth")
    check_loaded(empty)
    assert torch.equal(before, torch.random.get_rng_state())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(real(image), empty(image))


def test_the_whole_model_with_such_a_vit(published, tmp_path):
    vit = dict(embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=4)
    keys = published | {"image_size": 64, "vit_model": "swin_tiny_patch4_window7_224", "vit_kwargs": vit, "ckpt": None}
    keys |= {"q_former_model": None, "freeze_qformer": False}
    first = MiniGPT4(ModelConfig(**keys | {"vit_ckpt": None})).eval()
    torch.save(first.visual_encoder.state_dict(), tmp_path / "swin.pth")
    second = MiniGPT4(ModelConfig(**keys | {"vit_ckpt": str(tmp_path / "swin.pth")})).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(*(m.visual_encoder.forward_features(image) for m in (first, second)))


def test_what_no_file_brings_is_named():
    with empty_weights():
        module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    load_exact(named_tensors(module[0]), {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "w.pth")
    with pytest.raises(CheckpointError, match=r"no file of the config brings 1\.weight, 1\.bias \(2 in all\)"):
        check_loaded(module)


def test_new_weights_follow_the_seed(published):
    def built():
        torch.manual_seed(7)
        model = MiniGPT4(ModelConfig(**published | {"ckpt": None, "q_former_model": None, "freeze_qformer": False}))
        return {k: v.clone() for k, v in model.trained_state().items()}

    first, second = built(), built()
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert first["llama_proj.weight"].std() > 0.05 and 0.015 < first["query_tokens"].std() < 0.025


# -- the vision side ------------------------------------------------------------------------------------------------


def test_a_half_precision_vit_file_and_another_image_size(published, tmp_path):
    state = {name: tensor.half() for name, tensor in read_state(published["vit_ckpt"]).items()}
    torch.save(state, tmp_path / "half.pth")
    model = MiniGPT4(ModelConfig(**published | {"vit_ckpt": str(tmp_path / "half.pth")}))
    found = named_tensors(model.visual_encoder)
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in state.items())
    larger = MiniGPT4(ModelConfig(**published | {"image_size": 84}))
    side = 84 // published["vit_kwargs"]["patch_size"]
    assert larger.visual_encoder.pos_embed.shape[1] == 1 + side * side
    with torch.no_grad():
        assert larger.encode_img(torch.randn(1, 3, 84, 84)).shape == model.encode_img(torch.randn(1, 3, 56, 56)).shape


def test_a_trained_vision_side_goes_back_to_the_published_files(published, golden, tmp_path):
    """A checkpoint with ViT and Q-Former in it has the original's names, and parts of it are the files it began with.
    The original also registers `*.position_ids`; it loads checkpoints with strict=False and fills these itself."""
    model = MiniGPT4(ModelConfig(**published | {"freeze_vit": False, "freeze_qformer": False}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    state = {name: tensor.clone() for name, tensor in model.trained_state().items()}
    original = {k for k in golden("weights") if not k.startswith("llama_model.") and not k.endswith("position_ids")}
    assert set(state) == original
    atomic_save({"model": state}, tmp_path / "c.pth")
    vit = {k.removeprefix("visual_encoder."): v for k, v in state.items() if k.startswith("visual_encoder.")}
    torch.save(vit, tmp_path / "eva.pth")
    rest = {k: v for k, v in state.items() if not k.startswith(("visual_encoder.", "llama_proj."))}
    extra = {"Qformer.bert.embeddings.position_ids": torch.arange(4)[None]}
    torch.save({"model": rest | extra}, tmp_path / "blip2.pth")
    apart = {"vit_ckpt": str(tmp_path / "eva.pth"), "q_former_model": str(tmp_path / "blip2.pth")}
    for keys in ({"ckpt": str(tmp_path / "c.pth")}, apart):
        found = MiniGPT4(ModelConfig(**published | keys)).published_tensors()
        brought = state if "ckpt" in keys else {k: v for k, v in state.items() if not k.startswith("llama_proj.")}
        assert all(torch.equal(found[name], tensor) for name, tensor in brought.items())


@pytest.mark.parametrize("kind", ["stage 1 and 2", "safetensors"])
def test_the_originals_checkpoints(published, tmp_path, kind):
    """They hold the projection and buffers without meaning; one for another LLM is refused by its shapes."""
    torch.manual_seed(0)
    wanted = {"llama_proj.weight": torch.randn(64, 64), "llama_proj.bias": torch.randn(64)}
    beside = {
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "Qformer.bert.embeddings.position_ids": torch.arange(4)[None],
    }
    file = tmp_path / ("c.safetensors" if kind == "safetensors" else "c.pth")

    def write(state):
        if kind == "safetensors":
            save_file(state, file)
        else:
            torch.save({"model": state, "optimizer": {}, "config": {"run": {}}, "epoch": 3}, file)

    write(wanted | beside)
    model = MiniGPT4(ModelConfig(**published | {"ckpt": str(file)}))
    assert torch.equal(model.llama_proj.weight, wanted["llama_proj.weight"])
    write(wanted | {"llama_proj.weight": torch.randn(80, 64), "llama_proj.bias": torch.randn(80)})
    with pytest.raises(
        CheckpointError, match=r"llama_proj\.weight is \(80, 64\) in the file and \(64, 64\) in the model"
    ):
        model.load_trained(str(file))
