"""`minigpt4 doctor` on every usual mistake, made at tiny dimensions with the real names."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from minigpt4.checkup import doctor
from minigpt4.checkup.doctor.context import LOOK, OK, WRONG
from minigpt4.cli import main
from tests.golden_set import write_published_files


@pytest.fixture(scope="session")
def whole(golden_dir, tmp_path_factory) -> Path:
    """A folder with all a chat needs, in Vicuna v0's form: one row more than LLaMA, for [PAD]."""
    out = tmp_path_factory.mktemp("whole")
    model = write_published_files(golden_dir, out)
    state = load_file(out / "llama" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True)])
    _write_shards(out / "llama", state)
    edit(out / "llama/config.json", vocab_size=385)
    (out / "llama/added_tokens.json").write_text('{"[PAD]": 384}')
    edit(out / "llama/special_tokens_map.json", pad_token="[PAD]")
    torch.save(
        {"model": torch.load(out / "checkpoint_0.pth")["model"], "epoch": 4, "config": stage2()},
        out / "checkpoint_0.pth",
    )
    model = {k: asdict(v) if k == "qformer_kwargs" else v for k, v in model.items()}
    model |= {
        "end_sym": "###",
        "prompt_path": "prompts/alignment.txt",
        "prompt_template": "###Human: {} ###Assistant: ",
    }
    text = OmegaConf.to_yaml(
        {"model": {k: str(v).replace(str(out), ".") if k in PATHS else v for k, v in model.items()}}
    )
    (out / "chat.yaml").write_text(text)
    return out


PATHS = ("vit_ckpt", "q_former_model", "llama_model", "ckpt")


def _write_shards(folder: Path, state: dict) -> None:
    """Two .bin files and their index, as Vicuna comes."""
    for old in (*folder.glob("*.safetensors*"), *folder.glob("*.bin*")):
        old.unlink()
    names = sorted(state)
    halves = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, part in halves.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, part in halves.items() for n in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _llama(folder: Path) -> dict:
    return {k: v for file in sorted(folder.glob("*.bin")) for k, v in torch.load(file).items()}


def edit(path: Path, **changes) -> None:
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not ...}))


def stage1() -> dict:
    return {"model": {"arch": "mini_gpt4", "freeze_vit": True}, "run": {"max_epoch": 4},
            "datasets": {"laion": {"sample_ratio": 115}, "cc_sbu": {"sample_ratio": 14}}}  # fmt: skip


def stage2() -> dict:
    return {"model": {"prompt_path": "prompts/alignment.txt", "prompt_template": "###Human: {} ###Assistant: "},
            "datasets": {"cc_sbu_align": {}}, "run": {"max_epoch": 5}}  # fmt: skip


@pytest.fixture
def files(whole, tmp_path, monkeypatch) -> Path:
    """A copy to break, as the working directory."""
    shutil.copytree(whole, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


def look(capsys, *options: str, cfg: str = "chat.yaml", mode: str = "chat") -> tuple[int, dict[str, dict]]:
    """Exit code, and the worst row of each name."""
    argv = ["doctor", "--cfg-path", cfg, "--mode", mode, "--device", "cpu", "--json"]
    code = main([*argv, "--options", *options] if options else argv)
    rows = json.loads(capsys.readouterr().out)["rows"]
    return code, {row["name"]: row for row in sorted(rows, key=lambda r: [OK, LOOK, WRONG].index(r["mark"]))}


def wrong(capsys, name: str, *words: str, **where) -> dict:
    """The doctor exits with 1, and this row and no other is wrong, with these words."""
    code, rows = look(capsys, **where)
    assert {n for n, row in rows.items() if row["mark"] == WRONG} == {name}, rows
    assert code == 1
    said = f"{rows[name]['text']} -> {rows[name]['do']}"
    for word in words:
        assert word in said
    assert rows[name]["do"]
    return rows[name]


def test_a_whole_set_is_right(files, capsys):
    code, rows = look(capsys)
    assert code == 0
    assert {row["mark"] for name, row in rows.items() if name not in ("versions", "memory")} == {OK}
    assert "an EVA ViT; " in rows["model.vit_ckpt"]["text"]
    assert "BLIP-2's Q-Former; " in rows["model.q_former_model"]["text"]
    assert "2 layers, width 64, vocabulary 385; 2 files" in rows["model.llama_model"]["text"]
    assert "a MiniGPT-4 checkpoint; " in rows["model.ckpt"]["text"]
    assert "stage 2 (epoch 4)" in rows["model.ckpt"]["text"]
    assert "Vicuna v0's form (385 rows: LLaMA's 384 and [PAD])" in rows["model.conv_template"]["text"]


# -- the LLM --------------------------------------------------------------------------------------------------------


def _drop_pad(files: Path, **config) -> None:
    """LLaMA's own form: no [PAD]."""
    state = _llama(files / "llama")
    _write_shards(files / "llama", {k: v[:384] if len(v) == 385 else v for k, v in state.items()})
    edit(files / "llama/config.json", vocab_size=384, **config)
    (files / "llama/added_tokens.json").unlink()
    edit(files / "llama/special_tokens_map.json", pad_token=...)


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"_name_or_path": "decapoda-research/llama-7b-hf"}, "_name_or_path decapoda-research/llama-7b-hf"),
        ({"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}, "max_position_embeddings 4096, rms_norm_eps 1e-05"),
    ],
)
def test_not_vicuna_v0(files, capsys, config, shown):
    _drop_pad(files, **config)
    like = "raw LLaMA, Llama 2, a delta, or Vicuna v1.1 or later (384 rows, no [PAD]; "
    wrong(capsys, "model.conv_template", like, shown, "prepare-vicuna")


@pytest.mark.parametrize("final", [0.0, 0.004])
def test_a_delta_that_was_not_added(files, capsys, final):
    state = _llama(files / "llama")
    delta = {k: torch.full_like(v, final) if "norm" in k else v * 0.01 for k, v in state.items()}
    _write_shards(files / "llama", delta)
    wrong(capsys, "model.llama_model", f"looks like a delta that was not added to LLaMA: the final norm's weights "
          f"average {final:.4f}", "prepare-vicuna")  # fmt: skip


def test_a_delta_of_v1_1(files, capsys):
    _drop_pad(files)
    _write_shards(files / "llama", {k: v * 0.01 for k, v in _llama(files / "llama").items()})
    code, rows = look(capsys)
    assert code == 1
    assert "looks like a delta" in rows["model.llama_model"]["text"]
    assert "384 rows, no [PAD]" in rows["model.conv_template"]["text"]


def test_a_download_that_left_zeros(files, capsys):
    _write_shards(files / "llama", {k: torch.zeros_like(v) for k, v in _llama(files / "llama").items()})
    wrong(capsys, "model.llama_model", "the download was not finished")


def test_a_checkpoint_for_an_llm_of_another_size(files, capsys):
    torch.save({"model": {"llama_proj.weight": torch.zeros(80, 64), "llama_proj.bias": torch.zeros(80)}}, "c.pth")
    shutil.move("c.pth", "checkpoint_0.pth")
    wrong(
        capsys,
        "model.ckpt",
        "llama_proj.weight is (80, 64) in the file and (64, 64) in the model",
        "the ViT and LLM of the config",
    )


def test_config_json_of_one_size_and_weights_of_another(files, capsys):
    edit(files / "llama/config.json", hidden_size=80, intermediate_size=216)
    wrong(capsys, "model.llama_model", "config.json and weights differ", "mixed",
          "lm_head.weight is (385, 64) in the file and (385, 80) in the model")  # fmt: skip


def test_a_shard_of_another_size(files, capsys):
    shard = files / "llama/pytorch_model-00002-of-00002.bin"
    torch.save({k: torch.zeros(80, 80) if v.ndim == 2 else torch.ones(80) for k, v in torch.load(shard).items()}, shard)
    wrong(capsys, "model.llama_model", "pytorch_model-00002-of-00002.bin does not fit", "other shape", "mixed")


def test_a_missing_shard(files, capsys):
    (files / "llama/pytorch_model-00001-of-00002.bin").unlink()
    wrong(
        capsys,
        "model.llama_model",
        "1 of the 2 files that pytorch_model.bin.index.json names are missing: pytorch_model-00001-of-00002.bin",
    )


def test_shards_that_are_lfs_pointers(files, capsys):
    for shard in files.glob("llama/*.bin"):
        shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9948728430\n")
    wrong(
        capsys,
        "model.llama_model",
        "is a git-lfs pointer",
        "a git-lfs pointer",
        "git lfs pull",
    )


def test_a_config_of_fewer_layers(files, capsys):
    edit(files / "llama/config.json", num_hidden_layers=1)
    wrong(capsys, "model.llama_model", "config.json and weights differ", "unexpected: model.layers.1.", "config.json")


def test_metas_own_form(files, capsys):
    shutil.rmtree(files / "llama")
    (files / "llama").mkdir()
    (files / "llama/params.json").write_text("{}")
    wrong(capsys, "model.llama_model", "LLaMA in Meta's own form", "prepare-vicuna")


# -- tokenizer and templates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bos_token": None}, "its BOS None is None, by config.json 1"),
        ({"bos_token": "", "eos_token": "", "unk_token": ""}, "bos_token, eos_token, unk_token empty"),
        ({"bos_token": "</s>"}, "its BOS </s> is 2, by config.json 1"),
    ],
)
def test_a_tokenizer_without_bos(files, capsys, settings, said):
    edit(files / "llama/tokenizer_config.json", **settings)
    (files / "llama/special_tokens_map.json").unlink()
    wrong(capsys, "tokenizer", said)


def test_the_v0_tokenizer_beside_weights_without_its_row(files, capsys):
    added, special = (
        (files / "llama/added_tokens.json").read_text(),
        (files / "llama/special_tokens_map.json").read_text(),
    )
    _drop_pad(files)
    (files / "llama/added_tokens.json").write_text(added)
    (files / "llama/special_tokens_map.json").write_text(special)
    _, rows = look(capsys)
    assert "[PAD] = 384 past the embedding's 384 rows" in rows["tokenizer"]["text"]
    assert rows["tokenizer"]["mark"] == rows["model.conv_template"]["mark"] == WRONG


def test_v0_weights_without_their_added_token(files, capsys):
    (files / "llama/added_tokens.json").unlink()
    edit(files / "llama/special_tokens_map.json", pad_token=...)
    code, rows = look(capsys)
    assert code == 0  # padding is EOS, so nothing goes wrong here
    assert rows["model.conv_template"]["mark"] == LOOK
    assert "385 rows, but 384 pieces and no [PAD]" in rows["model.conv_template"]["text"]


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (["model.pad_token='[NONE]'"], "tokenizer", "'[NONE]' is not a token of"),
        (["model.conv_template=chatml"], "model.conv_template", "no token <|im_start|>, <|im_end|>"),
        (["model.conv_template=vicuna"], "model.conv_template", "did you mean 'vicuna_v0'"),
        (["model.prompt_path=chat.yaml"], "model.prompt_path", "no line of chat.yaml holds <ImageHere>"),
        (["model.prompt_path=none.txt"], "model.prompt_path", "no such file"),
    ],
)  # fmt: skip
def test_keys_that_contradict_the_llm(files, capsys, options, name, said):
    code, rows = look(capsys, *options)
    assert code == 1
    assert rows[name]["mark"] == WRONG
    assert said in f"{rows[name]['text']}; {rows[name]['do']}"


def test_a_tokenizer_that_is_an_lfs_pointer(files, capsys):
    (files / "llama/tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\nsize 499723\n")
    wrong(capsys, "tokenizer", "tokenizer.model is a git-lfs pointer", "git lfs pull")


# -- the other files ------------------------------------------------------------------------------------------------


def test_a_stage_1_checkpoint_in_the_chat(files, capsys):
    state = torch.load("checkpoint_0.pth")["model"]
    torch.save({"model": state, "optimizer": {}, "config": stage1(), "scaler": None, "epoch": 3}, "checkpoint_0.pth")
    wrong(capsys, "model.ckpt", "a stage-1 checkpoint (epoch 3): trained on laion and cc_sbu without instructions",
          "write a checkpoint of stage 2")  # fmt: skip
    _, rows = look(capsys, "run.max_epoch=1", mode="train")
    assert rows["model.ckpt"]["mark"] == OK  # stage 2 starts from it


def test_the_stage_of_a_file_without_a_config_inside(files, capsys):
    """Its name says nothing: the published checkpoint of stage 2 is called pretrained_minigpt4.pth."""
    save_file(torch.load("checkpoint_0.pth")["model"], "pretrained_minigpt4.safetensors")
    row = look(capsys, "model.ckpt=pretrained_minigpt4.safetensors")[1]["model.ckpt"]
    assert row["mark"] == OK and "stage 1 or 2 cannot be told: the file holds no config" in row["text"]


def test_the_resume_file_instead_of_the_checkpoint(files, capsys):
    torch.save({"optimizer": {"state": {}}, "scaler": None, "ranks": [], "step": 6}, "checkpoint_0.resume.pt")
    code, rows = look(capsys, "model.ckpt=checkpoint_0.resume.pt")
    assert code == 1
    assert "the optimizer and random state of a training run, without weights" in rows["model.ckpt"]["text"]
    assert "checkpoint_N.pth" in rows["model.ckpt"]["do"]


def test_swapped_files(files, capsys):
    code, rows = look(capsys, "model.vit_ckpt=blip2_pretrained.pth", "model.q_former_model=eva_vit_g.pth")
    assert code == 1
    assert "BLIP-2's Q-Former" in rows["model.vit_ckpt"]["text"]
    assert "an EVA ViT" in rows["model.q_former_model"]["text"]
    assert "this one belongs in model.q_former_model" in rows["model.vit_ckpt"]["do"]
    assert "this one belongs in model.vit_ckpt" in rows["model.q_former_model"]["do"]


@pytest.mark.parametrize("key", ["vit_ckpt", "q_former_model"])
def test_a_file_in_the_wrong_place(files, capsys, key):
    code, rows = look(capsys, f"model.{key}=checkpoint_0.pth")
    assert code == 1
    row = rows[f"model.{key}"]
    assert row["mark"] == WRONG
    assert "a MiniGPT-4 checkpoint" in row["text"] or "the same file as" in row["text"]
    assert "it belongs in model.ckpt" in row["do"] or "belongs in model.ckpt" in row["do"]


def test_a_vit_and_a_qformer_of_other_sizes(files, capsys):
    code, rows = look(capsys, "model.vit_kwargs.depth=3", "model.num_query_token=32")
    assert code == 1
    assert "missing: blocks.2.attn" in rows["model.vit_ckpt"]["text"]
    assert "query_tokens is (1, 8, 64) in the file and (1, 32, 64) in the model" in rows["model.q_former_model"]["text"]


@pytest.mark.parametrize(
    ("content", "said", "do"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2025239905\n", "git-lfs", "git lfs"),
        (b"<!DOCTYPE html>\n<title>Sign in</title>", "a web page, not weights", "fetch the file itself"),
        (b"", "an empty file", "download it again"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["vit_ckpt", "q_former_model", "ckpt"])
def test_no_weights_at_all(files, capsys, key, content, said, do):
    name = OmegaConf.load("chat.yaml").model[key]
    Path(name).write_bytes(content)
    wrong(capsys, f"model.{key}", said, do)


def test_a_file_cut_off(files, capsys):
    whole = Path("eva_vit_g.pth").read_bytes()
    Path("eva_vit_g.pth").write_bytes(whole[: len(whole) // 2])
    wrong(capsys, "model.vit_ckpt", "cut off: its end is missing", "download it again to the end")


def test_every_problem_at_once(files, capsys):
    """Placeholders, unknown keys and broken files: none hides another."""
    Path("checkpoint_0.pth").write_bytes(b"")
    code, rows = look(
        capsys, "model.vit_ckpt=/path/to/eva_vit_g.pth", "model.llama_modle=x", "model.q_former_model=none"
    )
    assert code == 1
    assert {n for n, row in rows.items() if row["mark"] == WRONG} == {
        "model.vit_ckpt", "model.llama_modle", "model.q_former_model", "model.ckpt"
    }  # fmt: skip
    assert "is a placeholder" in rows["model.vit_ckpt"]["text"]


def test_a_url_is_looked_at_once_it_is_fetched(files, capsys, monkeypatch):
    from minigpt4.common.download import cached_path

    monkeypatch.setenv("MINIGPT4_CACHE", str(files / "cache"))
    url = "https://example.org/eva_vit_g.pth"
    code, rows = look(capsys, f"model.vit_ckpt={url}")
    assert (code, rows["model.vit_ckpt"]["mark"]) == (0, LOOK)
    cached_path(url).parent.mkdir(parents=True)
    shutil.copy("blip2_pretrained.pth", cached_path(url))
    code, rows = look(capsys, f"model.vit_ckpt={url}")
    assert (code, rows["model.vit_ckpt"]["mark"]) == (1, WRONG)
    assert "BLIP-2's Q-Former" in rows["model.vit_ckpt"]["text"]


# -- the page --------------------------------------------------------------------------------------


def test_the_page_for_people(files, capsys):
    Path("eva_vit_g.pth").write_bytes(b"")
    assert main(["doctor", "--cfg-path", "chat.yaml", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "  WRONG  model.vit_ckpt\n" in out
    assert "-> download it again" in out
    assert out.endswith("\n1 wrong.\n")
    assert max(map(len, out.splitlines())) <= 100


def test_too_little_memory(files, monkeypatch, capsys):
    from types import SimpleNamespace

    from minigpt4.checkup.doctor import machine as doctor_context

    monkeypatch.setattr(
        doctor_context.psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000, total=200_000)
    )
    assert main(["doctor", "--cfg-path", "chat.yaml", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "  LOOK   memory\n" in out
    assert "100.0 kB of 200.0 kB memory free" in out
    assert "model.low_resource: 8bit or 4bit" in out
    assert "\nNothing wrong, 1 to look at.\nTo see what it says: minigpt4 describe PICTURE" in out


def test_the_mode_is_that_of_the_file():
    assert doctor.examine("eval_configs/minigpt4_eval.yaml", []).mode == "chat"
    assert doctor.examine("train_configs/minigpt4_stage2_finetune.yaml", []).mode == "train"


def test_safetensors_go_before_bin(files, capsys):
    """As in transformers: broken .bin files beside whole safetensors do no harm."""
    save_file(_llama(files / "llama"), files / "llama/model.safetensors")
    for shard in files.glob("llama/*.bin"):
        shard.write_bytes(b"")
    code, rows = look(capsys)
    assert code == 0
    assert "1 file," in rows["model.llama_model"]["text"]
