"""The exported folder, opened with transformers alone: the original's numbers, our tokens, and the way back."""

import gzip
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoProcessor, Blip2Config, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from minigpt4 import cli
from minigpt4.common.checkpoint import read_state, save_weights
from minigpt4.common.config import load_config
from minigpt4.common.registry import CONVERSATIONS, PROCESSORS
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import ChatState, Turn
from minigpt4.convert.hf import export_hf
from minigpt4.convert.hf import text as hf_text
from minigpt4.convert.hf.layout import renamed, to_hf
from minigpt4.tasks import build_model
from tests.golden_set import read_meta, write_published_files

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def write_config(golden: Path, folder: Path, **changes) -> Path:
    """A golden set's files and the config that names them."""
    model = {"arch": "mini_gpt4", **write_published_files(golden, folder / "files"), **changes}
    model["qformer_kwargs"] = {k: v for k, v in asdict(model["qformer_kwargs"]).items() if k != "dropout"}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model}))
    return path


class Exported:
    """A golden set as a folder for transformers, and that folder's way back."""

    def __init__(self, golden: Path, folder: Path):
        self.golden, self.meta = golden, read_meta(golden)
        self.config = write_config(golden, folder)
        self.files, self.hf, self.back = folder / "files", folder / "hf", folder / "back"
        assert cli.main(["export-hf", "--cfg-path", str(self.config), "--out", str(self.hf)]) == 0
        self.model = Blip2ForConditionalGeneration.from_pretrained(self.hf).eval()
        self.processor = AutoProcessor.from_pretrained(self.hf, trust_remote_code=True)
        with np.load(golden / "chat.npz") as archive:
            self.chat = {k: archive[k] for k in archive.files}

    def generate(self, **inputs) -> torch.Tensor:
        options = self.model.generation_config
        options.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=20)
        return self.model.generate(**inputs, generation_config=options, tokenizer=self.processor.tokenizer)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, golden_dir) -> Exported:
    return Exported(golden_dir, tmp_path_factory.mktemp("a"))


@torch.no_grad()
def test_the_originals_logits_and_greedy_text(exported):
    turn, processor = exported.meta["chat"][0], exported.processor
    ids = torch.tensor([processor.prompt_ids(turn["prompt"])])
    assert ids.shape[1] == turn["context_len"]
    greedy = torch.from_numpy(exported.chat["turn1_greedy_ids"])[None]
    pixels = torch.from_numpy(exported.chat["chat_image"]).reshape(1, 3, *exported.chat["chat_image"].shape[-2:])
    logits = exported.model(input_ids=torch.cat([ids, greedy], dim=1), pixel_values=pixels).logits[0]
    steps = exported.chat["turn1_step_logits"]
    ours = logits[ids.shape[1] - 1 : ids.shape[1] - 1 + len(steps), : steps.shape[1]].numpy()
    assert np.abs(ours - steps).max() < 1e-4

    output = exported.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    assert output[0, ids.shape[1] :].tolist() == greedy[0].tolist()
    text = processor.answer(greedy[0].tolist())
    assert text == turn["answer_text"].removesuffix("</s>")


def test_two_prompts_of_other_lengths_at_once(exported, tiny_model):
    see = PROCESSORS.get("blip2_image_eval")(image_size=56)
    chat, processor = Chat(tiny_model, see), exported.processor
    pictures = [PICTURE, PICTURE.rotate(90)]
    questions = ["What is it?", "Describe this image in detail, and say what is near the tree."]
    prompts = []
    for question in questions:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        prompts.append(processor.apply_chat_template(messages, add_generation_prompt=True))
    inputs = processor(images=[[p] for p in pictures], text=prompts)
    assert (inputs["attention_mask"][0] == 0).sum() > 0 and inputs["attention_mask"][0, -1] == 1
    answers = processor.answers(exported.generate(**inputs), inputs)
    assert answers == chat.answer_batch(pictures, questions, do_sample=False, max_new_tokens=20)
    assert len(set(answers)) == 2


@pytest.mark.parametrize("text", ["", "a house", " a", "two  spaces ", "é 木\n###", "a</s> b", "<unk>x", "\t"])
def test_text_is_cut_up_as_ours(exported, tiny_model, text):
    before, after = f"###Human: <Img>{text}", f"</Img> {text}"
    image = [exported.processor.image_token_id] * 8
    ours = [1, *tiny_model.token_ids(before), *image, *tiny_model.token_ids(after)]
    assert exported.processor.prompt_ids(f"{before}<ImageHere>{after}") == ours
    two = exported.processor.prompt_ids(f"<ImageHere><ImageHere>{text}")
    assert two == [1, *image, *image, *(tiny_model.token_ids(text) if text else [])]


def test_images_are_seen_as_ours(exported):
    see = PROCESSORS.get("blip2_image_eval")(image_size=56)
    deep = Image.fromarray((np.arange(40 * 30).reshape(40, 30) * 50).astype(np.uint16))
    turned = PICTURE.getexif()
    turned[0x0112] = 6  # lies on its side
    file = io.BytesIO()
    PICTURE.save(file, "JPEG", exif=turned)
    glass = PICTURE.convert("RGBA")
    glass.putalpha(90)
    for image in (PICTURE, PICTURE.convert("L"), PICTURE.convert("P"), glass, deep, Image.open(file)):
        theirs = exported.processor.image_processor(image)["pixel_values"][0]
        assert (theirs - see(image)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["vicuna_v0", "chatml"])
def test_chat_template_writes_our_prompts(exported, name):
    template = CONVERSATIONS.get(name)
    conv = ChatState(template, turns=[Turn('What "is" it?', [PICTURE], "A cat.\n"), Turn("Where?", [])])
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": 'What "is" it?'}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat.\n"}]},
        {"role": "user", "content": "Where?"},
    ]
    tokenizer = exported.processor.tokenizer
    jinja = hf_text.chat_template(template)
    written = tokenizer.apply_chat_template(messages, chat_template=jinja, add_generation_prompt=True, tokenize=False)
    assert written == conv.prompt()


def test_misuse_is_told(exported):
    with pytest.raises(ValueError, match="1 times, but there are 2 images"):
        exported.processor(images=[PICTURE, PICTURE], text="<ImageHere> what?")
    with pytest.raises(TemplateError, match="role system"):
        messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
        exported.processor.apply_chat_template(messages)


def test_the_folder_needs_nothing_of_ours(exported):
    config = json.loads((exported.hf / "config.json").read_text())
    assert "auto_map" not in config and config["architectures"] == ["Blip2ForConditionalGeneration"]
    code = (exported.hf / "processing_minigpt4.py").read_text()
    assert "import minigpt4" not in code and "from minigpt4" not in code and "from ." not in code
    stated = json.loads((exported.hf / "generation_config.json").read_text())
    assert stated["stop_strings"] == ["###"] and 2 in stated["eos_token_id"]
    assert stated["suppress_tokens"] == [config["image_token_index"]] == [384]
    assert str(exported.files) not in "".join(f.read_text() for f in exported.hf.glob("*.json"))


def test_the_card_and_the_docs_show_code_that_runs(exported, golden_dir, tmp_path, capsys):
    usage = (Path(hf_text.FILES) / "usage.py.txt").read_text().strip()
    assert usage in (exported.hf / "README.md").read_text()
    assert usage in (golden_dir.parents[3] / "docs" / "export.md").read_text()
    PICTURE.save(tmp_path / "cat.png")
    code = usage.replace("tokenizer)", "tokenizer, do_sample=False, max_new_tokens=5)")
    exec(code, {"FOLDER": exported.hf, "PICTURE": tmp_path / "cat.png"})
    assert capsys.readouterr().out.strip()


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in ours
    )


def come_back(exported: Path, files: Path, back: Path) -> None:
    """import-hf, and every file against the one that the folder was made of."""
    assert cli.main(["import-hf", str(exported), "--out", str(back)]) == 0
    for new, old in (("eva_vit_g.pth",) * 2, ("blip2_qformer.pth", "blip2_pretrained.pth"), ("checkpoint_0.pth",) * 2):
        theirs = {k: v for k, v in read_state(files / old).items() if not k.endswith("position_ids")}
        assert same(read_state(back / new), theirs), new
    llm = {}
    for shard in (back / "llama").glob("*.safetensors"):
        llm |= read_state(shard)
    assert same(llm, read_state(files / "llama" / "model.safetensors"))


def test_import_is_bit_exact(exported):
    come_back(exported.hf, exported.files, exported.back)
    config = load_config(str(exported.back / "minigpt4.yaml"), mode="chat").model
    assert config.max_txt_len == 32 and config.end_sym == "\n" and config.conv_template == "vicuna_v0"
    files, fp32 = (exported.config, exported.back / "minigpt4.yaml"), ["model.llama_precision=fp32"]
    ours, again = (build_model(load_config(str(file), fp32, mode="chat").model) for file in files)
    named = ours.published_tensors()
    assert all(torch.equal(v, named[k]) for k, v in again.published_tensors().items())
    for text in ("a house", " a </s> b", "é\n###"):
        assert again.token_ids(text) == ours.token_ids(text)
    assert again.tokenizer.pad_token_id == ours.tokenizer.pad_token_id


def test_shards_tied_embeddings_free_rows_and_bf16(golden_dir, tmp_path, monkeypatch):
    """A LLM of another make: its head is its embeddings, with more rows than the tokenizer has tokens."""
    config = write_config(golden_dir, tmp_path, llama_precision="auto")
    folder = tmp_path / "files" / "llama"
    sizes = LlamaConfig.from_pretrained(folder).to_dict() | {"vocab_size": 400, "tie_word_embeddings": True}
    llm = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
    llm.save_pretrained(folder)
    monkeypatch.setattr(export_hf, "SHARD", "300KB")
    assert cli.main(["export-hf", "--cfg-path", str(config), "--out", str(tmp_path / "hf")]) == 0
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    stated = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert stated["image_token_index"] == 384 and stated["text_config"]["vocab_size"] == 400  # a row nobody used
    assert "suppress_tokens" not in json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    opened = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    embeddings = opened.language_model.get_input_embeddings().weight
    assert embeddings.dtype == torch.bfloat16 and opened.language_model.lm_head.weight is embeddings
    assert torch.equal(embeddings, llm.model.embed_tokens.weight)
    come_back(tmp_path / "hf", tmp_path / "files", tmp_path / "back")


def test_the_published_names_at_full_size(golden_dir):
    """Every weight of the published files has its place in transformers' BLIP-2 of its default sizes, and back."""
    names = json.loads(gzip.decompress((golden_dir.parent / "published_names.json.gz").read_bytes()))["model"]
    ours = {k: torch.empty(v, device="meta") for k, v in names.items() if not k.endswith("position_ids")}
    text = {"model_type": "llama", "hidden_size": 5120, "num_hidden_layers": 1, "vocab_size": 8}
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(Blip2Config(text_config=text))
    wanted = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("language_model.")}
    there = to_hf(ours)
    assert {k: v.shape for k, v in there.items()} == wanted
    apart = {k for k in ours if k.endswith(("q_bias", "v_bias"))}
    assert {renamed(k, back=True) for k in wanted if not k.endswith("qkv.bias")} == set(ours) - apart


def test_lora_is_merged(golden_dir, tmp_path):
    config = write_config(golden_dir, tmp_path, lora={"r": 2, "alpha": 2})
    model = build_model(load_config(str(config), mode="chat").model)
    trained = {k: torch.full_like(v, 0.1) if ".lora_" in k else v for k, v in model.trained_state().items()}
    torch.save({"model": trained}, tmp_path / "files" / "checkpoint_0.pth")
    assert cli.main(["export-hf", "--cfg-path", str(config), "--out", str(tmp_path / "hf")]) == 0
    name = "model.layers.0.self_attn.q_proj.weight"
    merged = read_state(tmp_path / "hf" / "model.safetensors")[f"language_model.{name}"]
    before = read_state(tmp_path / "files" / "llama" / "model.safetensors")[name]
    assert (merged - before - 0.02).abs().max() < 1e-6  # 2 ranks of 0.1 * 0.1, counted alpha / r = 1


def test_what_blip2_cannot_be_is_refused(golden_dir, tmp_path, capsys):
    config = str(write_config(golden_dir, tmp_path))
    options = ["model.vit_model=vit_tiny_patch16_224", "model.vit_kwargs=null"]
    assert cli.main(["export-hf", "--cfg-path", config, "--out", str(tmp_path / "x"), "--options", *options]) == 1
    assert "transformers' BLIP-2 has only the EVA-ViT (eva_clip_g)" in capsys.readouterr().err
    assert cli.main(["export-hf", "--cfg-path", config, "--out", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["import-hf", str(tmp_path / "files" / "llama"), "--out", str(tmp_path / "x")]) == 1
    assert "not written by `minigpt4 export-hf`" in capsys.readouterr().err
    config = str(write_config(golden_dir.parent / "c", tmp_path / "c"))  # its ViT's output varies very little
    assert cli.main(["export-hf", "--cfg-path", config, "--out", str(tmp_path / "x")]) == 1
    assert "a relative error of 2e+00 in ln_vision" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_others_may_read_the_files(exported, tmp_path):
    """safetensors writes them for their owner only, whatever the umask says."""
    assert cli.main(["import-hf", str(exported.hf), "--out", str(tmp_path / "back")]) == 0
    (tmp_path / "a").write_text("")
    mode = (tmp_path / "a").stat().st_mode
    for folder in (exported.hf, tmp_path / "back", tmp_path / "back" / "llama"):
        assert {file.stat().st_mode for file in folder.iterdir() if file.is_file()} == {mode}


def test_the_way_back_needs_every_weight(exported, tmp_path, capsys):
    folder = shutil.copytree(exported.hf, tmp_path / "hf")
    state = read_state(folder / "model.safetensors")
    lost = state.pop("language_projection.bias")
    for wrong, said in [
        ({}, "missing: language_projection.bias"),
        ({"language_projection.bias": lost[1:]}, "is (63,) in the file and (64,)"),
    ]:
        save_weights(state | wrong, folder / "model.safetensors")
        assert cli.main(["import-hf", str(folder), "--out", str(tmp_path / "back")]) == 1
        assert said in capsys.readouterr().err and not (tmp_path / "back").exists()


def test_a_stopped_export_leaves_no_folder(golden_dir, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_hf, "write_generation_config", stop)
    config = str(write_config(golden_dir, tmp_path))
    assert cli.main(["export-hf", "--cfg-path", config, "--out", str(tmp_path / "hf")]) == 130
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.yaml", "files"]
