"""run.import_modules: the user's own parts by name, and what is said when they cannot be imported."""

import re
import sys

import pytest
import torch
import yaml
from PIL import Image

import train
from minigpt4 import cli
from minigpt4.common import registry
from minigpt4.common.checkpoint import read_state
from minigpt4.common.config import PROJECT, load_config
from minigpt4.common.errors import ConfigError
from minigpt4.serve import build_chat
from tests.golden_set import write_published_files


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """What a test imports and registers is gone after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    registries = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
    before = [dict(r._entries) for r in registries]
    yield
    for r, entries in zip(registries, before, strict=True):
        r._entries.clear()
        r._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def load(tmp_path):
    def load(*names, **keys):
        file = tmp_path / "c.yaml"
        file.write_text(yaml.safe_dump({"run": {"import_modules": list(names)}, **keys}))
        return load_config(str(file), mode="show")

    return load


def test_a_file_beside_the_config_a_module_and_a_package(load, tmp_path, monkeypatch):
    (tmp_path / "my_file.py").write_text(
        "from minigpt4.common.registry import MODELS\nimport my_helper\nMODELS.register('own')(my_helper.Own)\n"
    )
    (tmp_path / "my_helper.py").write_text("class Own: pass\n")
    here = tmp_path / "elsewhere"
    (here / "my_package").mkdir(parents=True)
    (here / "my_package" / "part.py").write_text(
        "from minigpt4.common.registry import TASKS\nTASKS.register('own_task')(object)\n"
    )
    (here / "my_other.py").write_text("import my_package.part\n")
    monkeypatch.chdir(here)
    own = {"model": {"arch": "own", "extra": {"a": {"b": 1}}}}
    config = load("my_file.py", "my_package.part", "./my_other.py", **own)
    assert config.model.extra == {"a": {"b": 1}} and config.model.image_size == 224
    assert registry.MODELS.get("own") is sys.modules["my_helper"].Own
    assert "own_task" in registry.TASKS.names()
    load("my_file.py", "my_package.part", **own)  # again: once imported is enough


def test_what_cannot_be_imported_is_told(load, tmp_path):
    (tmp_path / "my_wrong.py").write_text("import torch\n\nx = torch.no_such_thing\n")
    (tmp_path / "my_syntax.py").write_text("def (:\n")
    (tmp_path / "my_needs.py").write_text("import my_missing_library\n")
    (tmp_path / "yaml.py").write_text("")
    with pytest.raises(ConfigError) as caught:
        load("my_wrongs.py", "my_wrong.py", "my_syntax.py", "my_needs.py", "my_pkg.none", "yaml.py")
    key = "run.import_modules: "
    lines = [line.strip().replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        key + "'my_wrongs.py' cannot be imported: FileNotFoundError: no such file; did you mean 'my_wrong.py'?",
        key + "'my_wrong.py' cannot be imported: AttributeError: module 'torch' has no attribute 'no_such_thing' "
        "(my_wrong.py:3)",
        key + "'my_syntax.py': invalid syntax (my_syntax.py:1)",
        key + "'my_needs.py' cannot be imported: ModuleNotFoundError: No module named 'my_missing_library' "
        "(my_needs.py:1)",
        key + "'my_pkg.none' cannot be imported: ModuleNotFoundError: No module named 'my_pkg'",
        key + "'yaml.py' cannot be imported: ImportError: another module called 'yaml' is loaded already; "
        "rename the file",
    ]
    assert "my_wrong" not in sys.modules


def test_a_name_that_is_taken(load, tmp_path):
    (tmp_path / "my_double.py").write_text(
        "from minigpt4.common.registry import CONVERSATIONS\nCONVERSATIONS.register('chatml')(1)\n"
    )
    with pytest.raises(ConfigError, match=r"my_double\.py' cannot be imported: ValueError: .* 'chatml' is reg"):
        load("my_double.py")


def test_the_page_about_it_runs(golden_dir, tmp_path, capsys):
    """docs/extending.md, its code and its last config, at tiny dimensions: two steps, a chat, and `minigpt4 config`."""
    page = (PROJECT / "docs/extending.md").read_text()
    codes, (*_, config) = (re.findall(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "yaml"))
    (tmp_path / "my_parts.py").write_text("\n".join(codes))
    files = write_published_files(golden_dir, tmp_path)
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (60, 60), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "pets.csv").write_text(
        "image;question;answer\n0.png;What is it?;a red dog! It sits.\n1.png;And it?;a blue cat! Or not.\n"
    )

    data = yaml.safe_load(config.replace("pets.csv", f"{tmp_path}/pets.csv"))
    del data["base"], data["datasets"]["captioned_photos"]
    data["model"] |= {"prompt_path": "prompts/alignment.txt", "max_txt_len": 160}
    data["model"] |= {k: v for k, v in files.items() if k not in ("qformer_kwargs", "ckpt")} | {
        "ckpt": None,
        "vit_model": "eva_clip_g",
    }
    data["datasets"]["pets"]["vis_processor"]["train"]["image_size"] = 56
    data["run"] |= {"max_epoch": 1, "iters_per_epoch": 2, "batch_size_train": 2, "num_workers": 1, "device": "cpu",
                    "init_lr": 1e-2, "min_lr": 1e-2, "log_freq": 1, "output_dir": str(tmp_path / "run")}  # fmt: skip
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(data))

    assert train.main(["--cfg-path", str(file)]) == 0
    assert '"lr": 0.01' in (tmp_path / "run/log.jsonl").read_text().splitlines()[-1]
    assert cli.main(["config", "--cfg-path", str(file)]) == 0
    assert "pooled_minigpt4" in capsys.readouterr().out
    checkpoint = tmp_path / "run/checkpoint_0.pth"
    chat = build_chat(load_config(str(file), [f"model.ckpt={checkpoint}"], mode="chat"))
    model = chat.model
    assert torch.equal(model.llama_proj.weight, read_state(checkpoint)["llama_proj.weight"])
    tokens = model.visual_encoder.pos_embed.shape[1]
    assert model.encode_img(torch.zeros(1, 3, 56, 56)).shape[1] == -(-tokens // 4)
    assert model.config.end_sym == "###"
    conv = chat.new_conversation()
    chat.upload_img(str(tmp_path / "0.png"), conv)
    chat.ask("What is it?", conv)
    chat.answer(conv, do_sample=False, max_new_tokens=4)
    assert conv.prompt().startswith("### Instruction:\n<Img><ImageHere></Img> What is it?\n\n### Response:\n")
