"""`minigpt4 prepare-vicuna` on a LLaMA of random numbers, in Meta's form as Meta computes it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.cli import main
from minigpt4.common.checkpoint import weight_file
from minigpt4.common.errors import CheckpointError, UserError
from minigpt4.convert.vicuna import prepare as prepare_vicuna
from minigpt4.convert.vicuna import tokenizer as llama_tokenizer
from minigpt4.convert.vicuna.llama_meta import config_json, describe, open_llama, weights_of
from minigpt4.convert.vicuna.prepare import INDEX, open_job, prepare
from minigpt4.models.llm import load_tokenizer

# 12 heads of 8: heads, head size and layers all differ, so that a wrong permutation or axis shows. 384: the tokenizer.
WIDTH, HEADS, LAYERS, INNER, VOCAB, EPS = 96, 12, 3, 160, 384, 1e-6
COLUMNS = ("attention.wo", "feed_forward.w2", "tok_embeddings")
SHARD = 150_000  # bytes: several files


def meta_weights(seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"tok_embeddings": (VOCAB, WIDTH), "output": (VOCAB, WIDTH), "norm": (WIDTH,)}
    for i in range(LAYERS):
        of_layer = {f"attention.w{x}": (WIDTH, WIDTH) for x in "qkvo"}
        of_layer |= {"feed_forward.w1": (INNER, WIDTH), "feed_forward.w3": (INNER, WIDTH)}
        of_layer |= {"feed_forward.w2": (WIDTH, INNER), "attention_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        shapes |= {f"layers.{i}.{name}": shape for name, shape in of_layer.items()}
    return {
        f"{name}.weight": ((len(shape) == 1) + torch.randn(shape, generator=g) * 0.2).to(dtype)
        for name, shape in shapes.items()
    }


def write_meta(folder: Path, weights: dict[str, torch.Tensor], files: int, **params) -> Path:
    """Split as model parallelism does: norms whole, COLUMNS along axis 1, all else along axis 0."""
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "golden/data/a/tokenizer/tokenizer.model", folder.parent)
    stated = {"dim": WIDTH, "multiple_of": 32, "n_heads": HEADS, "n_layers": LAYERS, "norm_eps": EPS, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps({**stated, **params}))
    for k in range(files):
        part = {"rope.freqs": torch.ones(4), "layers.0.attention.inner_attention.rope.freqs": torch.ones(4)}
        for name, tensor in weights.items():
            axis = None if tensor.ndim == 1 else int(any(word in name for word in COLUMNS))
            part[name] = tensor if axis is None else tensor.chunk(files, axis)[k].clone()
        torch.save(part, folder / f"consolidated.{k:02}.pth")
    return folder


def meta_logits(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """(T,) -> (T, V): the arithmetic of Meta's model.py, rotary embedding with complex numbers."""
    w = {name.removesuffix(".weight"): tensor.float() for name, tensor in weights.items()}
    size, length = WIDTH // HEADS, len(ids)

    def norm(x, scale):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * scale

    freqs = 1.0 / (10000.0 ** (torch.arange(0, size, 2).float() / size))
    angles = torch.outer(torch.arange(length).float(), freqs)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, size / 2)

    def rotate(x):
        pairs = torch.view_as_complex(x.reshape(length, HEADS, -1, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(2)

    h = w["tok_embeddings"][ids]
    mask = torch.full((length, length), -math.inf).triu(1)
    for i in range(LAYERS):
        layer = {name.removeprefix(f"layers.{i}."): t for name, t in w.items() if name.startswith(f"layers.{i}.")}
        x = norm(h, layer["attention_norm"])
        q, k, v = ((x @ layer[f"attention.w{n}"].T).view(length, HEADS, size) for n in "qkv")
        q, k, v = (t.transpose(0, 1) for t in (rotate(q), rotate(k), v))
        mixed = F.softmax(q @ k.transpose(1, 2) / math.sqrt(size) + mask, dim=-1) @ v
        h = h + mixed.transpose(0, 1).flatten(1) @ layer["attention.wo"].T
        x = norm(h, layer["ffn_norm"])
        inner = F.silu(x @ layer["feed_forward.w1"].T) * (x @ layer["feed_forward.w3"].T)
        h = h + inner @ layer["feed_forward.w2"].T
    return norm(h, w["norm"]) @ w["output"].T


def save_transformers(folder: Path, state: dict, sizes, file: str = "pytorch_model.bin") -> Path:
    """A folder as FastChat's and transformers' of 2023 wrote them: two .bin files with inv_freq, or one file."""
    folder.mkdir(parents=True)
    config = config_json(sizes, torch.float16) | {"vocab_size": len(state["lm_head.weight"])}
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith("safetensors"):
        save_file(state, folder / file)
        return folder
    state = {**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    names, weight_map = list(state), {}
    for k, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save({n: state[n] for n in part}, folder / f"pytorch_model-{k:05}-of-00002.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{k:05}-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    files = [weight_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: file.value(name) for file in files for name in file.tensors}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """llama/13B in Meta's form (2 files), deltas v0 (two .bin) and v1.1 (safetensors), and the state of llama."""
    root = tmp_path_factory.mktemp("made")
    llama = write_meta(root / "llama/13B", meta_weights(), files=2)
    base = open_llama(llama)
    state = {name: base.read(name).contiguous() for name in weights_of(base.sizes)}
    g = torch.Generator().manual_seed(1)
    delta = {name: (torch.randn(t.shape, generator=g) * 0.01).half() for name, t in state.items()}
    v11 = save_transformers(root / "delta-v1.1", delta, base.sizes, "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        row = torch.randn(1, WIDTH, generator=g).half() * 0.01
        row[0, 0] = -0.0  # 0 + -0 is 0
        delta[name] = torch.cat([delta[name], row])
    v0 = save_transformers(root / "delta-v0", delta, base.sizes)
    (v0 / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": ""})
    )
    return {"root": root, "llama": llama, "state": state, "v0": v0, "v1.1": v11, "delta": delta, "sizes": base.sizes}


@pytest.fixture
def folders(made, tmp_path):
    """Copies that a test may damage."""
    for name in ("llama", "delta-v0", "delta-v1.1"):
        shutil.copytree(made["root"] / name, tmp_path / name)
    return {"llama": tmp_path / "llama/13B", "v0": tmp_path / "delta-v0", "v1.1": tmp_path / "delta-v1.1"}


@pytest.mark.parametrize("files", [1, 2, 4])
def test_transformers_computes_what_metas_arithmetic_does(tmp_path, files):
    weights = meta_weights()
    job = open_job(write_meta(tmp_path / "llama/7B", weights, files), None, SHARD, torch.float32)
    prepare(job, tmp_path / "out")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = torch.randint(VOCAB, (17,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = model(ids[None]).logits[0]
    theirs = meta_logits(weights, ids)
    assert theirs.abs().max() > 2
    assert (ours - theirs).abs().max() < 1e-4
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))[0].startswith("model-00001-of-000")


def test_v0_is_the_fp16_sum_and_the_pad_row(made, tmp_path, capsys):
    out = tmp_path / "vicuna"
    arguments = [
        "--base",
        str(made["llama"]),
        "--delta",
        str(made["v0"]),
        "--out",
        str(out),
        "--max-shard-size",
        "150kB",
    ]
    assert main(["prepare-vicuna", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Vicuna v0 from") and "all checks passed" in said
    assert f"{VOCAB} pieces, BOS <s> = 1, EOS </s> = 2, [PAD] = {VOCAB}, '###' = [298]" in said
    assert "files right; all together" in said

    result = read_all(out)
    assert result.keys() == made["state"].keys()
    for name, base in made["state"].items():
        padded = torch.zeros(made["delta"][name].shape, dtype=torch.float16)
        padded[: len(base)] = base
        exact = (padded.double() + made["delta"][name].double()).half()  # rounded once
        assert torch.equal(result[name].view(torch.int16), exact.view(torch.int16)), name
    assert result["lm_head.weight"].shape == (VOCAB + 1, WIDTH)

    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["pad_token_id"]) == (VOCAB + 1, 1, VOCAB)
    assert json.loads((out / "added_tokens.json").read_text()) == {"[PAD]": VOCAB}
    assert load_tokenizer(str(out), "[PAD]")("a[PAD]").input_ids[-1] == VOCAB
    weight_map = json.loads((out / INDEX).read_text())["weight_map"]
    assert set(weight_map) == set(result) and len(set(weight_map.values())) > 2
    assert all((out / name).stat().st_size < 160_000 for name in weight_map.values())


def test_v11_and_a_base_in_transformers_format(made, tmp_path):
    base = save_transformers(tmp_path / "llama-hf", made["state"], made["sizes"])
    shutil.copy(made["llama"].parent / "tokenizer.model", base)
    job = open_job(base, made["v1.1"])
    assert job.kind == "Vicuna v1.1 or later"
    prepare(job, tmp_path / "out")
    result = read_all(tmp_path / "out")
    for name, tensor in made["state"].items():
        assert torch.equal(result[name], tensor + made["delta"][name][: len(tensor)]), name
    assert not (tmp_path / "out/added_tokens.json").exists()
    assert open_job(made["llama"], made["v1.1"]).tensor("lm_head.weight").equal(result["lm_head.weight"])


def test_files_saved_from_a_gpu_are_read_without_one(made, folders, monkeypatch):
    path = folders["llama"] / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(state, path)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert open_llama(folders["llama"]).read(name).equal(made["state"][name])


# -- what is refused, before anything is written


def refusal(base: Path, delta: Path | None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_job(base, delta)
    return str(caught.value)


def test_wrong_pairs_are_refused(made, tmp_path):
    llama, v0, sizes = made["llama"], made["v0"], made["sizes"]
    assert "Meta's LLaMA, not a delta; swap" in refusal(llama, llama)
    assert "a delta, not LLaMA (its norms are near 0)" in refusal(v0, llama)
    assert "a delta, not LLaMA (its norms are near 0)" in refusal(made["v1.1"], v0)

    whole = save_transformers(
        tmp_path / "whole", {n: t + made["delta"][n][: len(t)] for n, t in made["state"].items()}, sizes
    )
    assert "a whole model, not a delta" in refusal(llama, whole)

    prepare(open_job(llama, v0), tmp_path / "vicuna")
    assert "Vicuna already (385 rows of vocabulary, LLaMA's tokenizer 384)" in refusal(tmp_path / "vicuna", v0)
    shutil.copy(llama.parent / "tokenizer.model", whole)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({**config, "_name_or_path": "lmsys/vicuna-7b-v1.1"}))
    assert "Vicuna already" in refusal(whole, v0)


def test_sizes_that_differ_are_both_named(made, tmp_path):
    small = {n: t for n, t in meta_weights(7).items() if not n.startswith("layers.2.")}
    other = write_meta(tmp_path / "llama/7B", small, 1, n_layers=2)
    message = refusal(other, made["v0"])
    assert "width 96, 3 layers, vocabulary 385" in message and "width 96, 2 layers, vocabulary 384" in message
    assert "the base has num_hidden_layers 2 (the delta's is 3). Both must be of one size" in message

    llama2 = write_meta(tmp_path / "llama-2/7B", meta_weights(7, torch.bfloat16), 1, norm_eps=1e-5)
    message = refusal(llama2, made["v0"])
    assert "the base has rms_norm_eps 1e-05 (the delta's is 1e-06)." in message
    assert "Llama 2" in message
    assert open_job(llama2, None).kind == "LLaMA"


@pytest.mark.parametrize("damage", ["lfs", "html", "cut", "gone", "index", "shape", "name", "tokenizer", "nothing"])
def test_a_damaged_input_is_named(folders, damage):
    llama, v0 = folders["llama"], folders["v0"]
    second, first_bin = llama / "consolidated.01.pth", v0 / "pytorch_model-00001-of-00002.bin"
    if damage == "lfs":
        first_bin.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9900000000\n")
        expected = f"{first_bin} is a git-lfs pointer"
    elif damage == "html":
        first_bin.write_bytes(b"<!DOCTYPE html><html><title>404</title>")
        expected = f"{first_bin} is a web page"
    elif damage == "cut":
        second.write_bytes(second.read_bytes()[:-1000])
        expected = f"{second} is cut off"
    elif damage == "gone":
        second.unlink()
        expected = f"{llama}: this model has 2 files; missing: consolidated.01.pth"
    elif damage == "index":
        first_bin.unlink()
        expected = f"{v0}: 1 of the 2 files that pytorch_model.bin.index.json names are missing: {first_bin.name}"
    elif damage in ("shape", "name"):
        state = torch.load(second, weights_only=True)
        tensor = state.pop("layers.2.feed_forward.w2.weight")
        state["layers.2.feed_forward.w2.weight" if damage == "shape" else "other"] = tensor.T.clone()
        torch.save(state, second)
        expected = (
            "w2.weight is (80, 96) in the file and (96, 80) in the model"
            if damage == "shape"
            else "missing: layers.2.feed_forward.w2"
        )
    elif damage == "tokenizer":
        (llama.parent / "tokenizer.model").unlink()
        expected = "tokenizer.model is missing"
    else:
        llama = llama.parent
        expected = f"write one of its folders: {llama / '13B'}"
    assert expected in refusal(llama, v0)


def test_another_tokenizer_of_llamas_size_is_refused(made, monkeypatch):
    monkeypatch.setattr(llama_tokenizer, "LLAMA_PIECES", VOCAB)
    assert "not LLaMA's tokenizer: '###' is [298], in LLaMA's [835]" in refusal(made["llama"], made["v0"])


def test_a_bos_that_no_vocabulary_has_is_refused(folders):
    (folders["v0"] / "special_tokens_map.json").write_text('{"bos_token": "<start>"}')
    assert "bos_token '<start>' is not in" in refusal(folders["llama"], folders["v0"])


def test_too_small_a_disk_is_told_before_the_first_byte(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    arguments = ["--base", str(made["llama"]), "--delta", str(made["v0"]), "--out", str(tmp_path / "deep/out")]
    assert main(["prepare-vicuna", *arguments]) == 1
    assert "20.6 MB are to be written, the disk has 10 bytes free" in capsys.readouterr().err
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(made, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="exists already; name a new folder"):
        prepare(open_job(made["llama"], made["v0"]), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# -- stopping, verifying


def test_a_disk_that_fills_up_is_one_message_and_leaves_nothing(made, tmp_path, monkeypatch):
    def full(state, path, metadata):
        if "00003-of" in path:
            raise OSError(28, "No space left on device")
        save_file(state, path, metadata)

    monkeypatch.setattr(prepare_vicuna, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left on device"):
        prepare(open_job(made["llama"], made["v0"], SHARD), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_verify_finds_one_flipped_bit_and_a_changed_tokenizer(made, tmp_path, monkeypatch, capsys):
    job, out = open_job(made["llama"], made["v0"], SHARD), tmp_path / "out"
    prepare(job, out)
    assert main(["prepare-vicuna", "--verify", str(out)]) == 0
    assert "all checks passed" in capsys.readouterr().out
    name = list(job.plan)[1]
    flip(out / name)
    (out / "special_tokens_map.json").unlink()
    settings = json.loads((out / "tokenizer_config.json").read_text())
    (out / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "</s>"}))
    assert main(["prepare-vicuna", "--verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert f"WRONG: {name}: not what was written; make the folder anew" in said
    assert "WRONG: tokenizer: BOS and EOS are 2 and 2, in config.json 1 and 2" in said
    assert main(["prepare-vicuna", "--verify", str(made["v0"])]) == 1
    assert "was not made by prepare-vicuna" in capsys.readouterr().err


def test_nan_in_an_input_is_refused_and_named(made, folders, tmp_path):
    state = torch.load(path := folders["v0"] / "pytorch_model-00002-of-00002.bin", weights_only=True)
    name = next(n for n in state if n.endswith("proj.weight"))
    state[name][0, 0] = math.nan
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        prepare(open_job(folders["llama"], folders["v0"]), tmp_path / "out")


@pytest.mark.parametrize(("size", "numbers"), [("7B", 6_738_423_808), ("13B", 13_015_874_560)])
def test_full_sizes_have_the_published_numbers(size, numbers):
    of = {"7B": (4096, 11008, 32, 32, 32), "13B": (5120, 13824, 40, 40, 40)}[size]
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = LlamaConfig(**dict(zip(keys, of, strict=True)), vocab_size=32001)
    assert sum(weight.numel() for weight in weights_of(sizes).values()) == numbers
    assert describe(sizes).startswith(f"{size}: width")


@pytest.mark.parametrize("size", ["", "GB", "5XB"])
def test_a_shard_size_that_is_none(made, size):
    with pytest.raises(UserError, match="is not a size"):
        _ = open_job(made["llama"], made["v0"], size).plan
