"""A config that can be trained, and what loading it or a changed one says."""

import pytest
import yaml

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError


@pytest.fixture
def good(tmp_path):
    """A config that can be trained: everything it names is there (and empty)."""
    for name in ("vit.pth", "qformer.pth", "0.tar", "1.tar"):
        (tmp_path / name).touch()
    (tmp_path / "llm").mkdir()
    return {
        "model": {
            "arch": "mini_gpt4", "vit_ckpt": str(tmp_path / "vit.pth"), "q_former_model": str(tmp_path / "qformer.pth"),
            "llama_model": str(tmp_path / "llm"),
        },
        "datasets": {
            "laion": {
                "build_info": {"storage": str(tmp_path / "{0..1}.tar")},
                "vis_processor": {"train": {"name": "blip2_image_train"}},
                "text_processor": {"train": {"name": "blip_caption"}},
            }
        },
        "run": {"task": "image_text_pretrain", "init_lr": 1e-3},
    }  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """load(dict or text, options, mode=...) -> Config, through a file."""

    def load(data, options=(), **keys):
        file = tmp_path / "config.yaml"
        file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return load_config(str(file), options, **keys)

    return load


@pytest.fixture
def problems(load):
    """problems(dict, options) -> the lines of the error, without its head."""

    def problems(data, options=(), **keys):
        with pytest.raises(ConfigError) as caught:
            load(data, options, **keys)
        head, *lines = str(caught.value).splitlines()
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        assert head.endswith(f"config.yaml: {count}"), head
        assert all(line.startswith("  ") for line in lines)
        return [line[2:] for line in lines]

    return problems
