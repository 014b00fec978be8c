"""Loading holds the weights once: a model of 1 GB is built in a process of its own, whose memory is watched.

What counts is the memory of its own. Pages of mapped weight files are the system's cache: it takes them back when
memory is short, and processes share them.

`python tests/e2e/test_memory.py FOLDER` writes the files there and prints the figures.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

LLM = LlamaConfig(
    hidden_size=1024, intermediate_size=2752, num_hidden_layers=16, num_attention_heads=16, vocab_size=32000
)
VIT = {"embed_dim": 704, "depth": 12, "num_heads": 16}
TOKENIZER = Path(__file__).parents[1] / "golden" / "data" / "a" / "tokenizer"
FIELDS = {"VmHWM": "peak", "VmRSS": "now", "RssAnon": "own", "RssFile": "file"}
MOST = 1.15


def write_files(folder: Path, llm_format: str, llm_dtype: torch.dtype) -> dict:
    """The published files' formats, with made weights, as a user has them: a fp16 ViT, a Q-Former with keys beside it,
    an LLM in shards. -> ModelConfig's keys."""
    from minigpt4.common.schema import ModelConfig
    from minigpt4.models.shapes import MiniGPT4Shapes

    sizes = dict(vit_kwargs=VIT, vit_precision="fp32", llama_precision="bf16", low_resource=False)
    names = MiniGPT4Shapes(ModelConfig(**sizes), LLM).published_tensors()
    block = torch.randn(1 << 20) * 0.02

    def made(prefix: str, dtype: torch.dtype, keep: str = "") -> dict[str, torch.Tensor]:
        """Repeats of one random block: the pages are real, and made fast."""
        return {
            keep + name.removeprefix(prefix): block.repeat(tensor.numel() // len(block) + 1)[: tensor.numel()]
            .reshape(tensor.shape)
            .to(dtype)
            for name, tensor in names.items()
            if name.startswith(prefix)
        }

    torch.save(made("visual_encoder.", torch.float16), folder / "eva_vit_g.pth")
    qformer = made("Qformer.", torch.float32, "Qformer.") | made("query_tokens", torch.float32, "query_tokens")
    qformer |= made("ln_vision.", torch.float32, "ln_vision.") | {"t5_proj.weight": torch.zeros(2048, 768)}
    torch.save({"model": qformer}, folder / "blip2.pth")
    torch.save({"model": made("llama_proj.", torch.float32, "llama_proj.")}, folder / "checkpoint_3.pth")
    llm = made("llama_model.", llm_dtype)
    LLM.save_pretrained(folder / "llm")
    shards = [dict(list(llm.items())[i::3]) for i in range(3)]
    pattern = {"safetensors": "model-{:05}-of-00003.safetensors", "bin": "pytorch_model-{:05}-of-00003.bin"}[llm_format]
    where = {}
    for i, shard in enumerate(shards, start=1):
        name = pattern.format(i)
        if llm_format == "bin":
            torch.save(shard, folder / "llm" / name)
        else:
            save_file(shard, folder / "llm" / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
    index = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}[llm_format]
    (folder / "llm" / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for file in TOKENIZER.iterdir():
        (folder / "llm" / file.name).write_bytes(file.read_bytes())
    LLM.save_pretrained(folder / "llm")  # after the tokenizer's folder, which has a config.json of its own
    return sizes | dict(
        vit_ckpt=str(folder / "eva_vit_g.pth"),
        q_former_model=str(folder / "blip2.pth"),
        llama_model=str(folder / "llm"),
        ckpt=str(folder / "checkpoint_3.pth"),
    )


def memory() -> dict[str, float]:
    """This process's memory in MB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {FIELDS[f[0][:-1]]: int(f[1]) / 1024 for f in lines if f and f[0][:-1] in FIELDS}


def watch_loading(keys: dict) -> dict[str, float]:
    """Build the model; MB of its weights, and how much more memory than before was in use at the worst moment."""
    from minigpt4.common.schema import ModelConfig
    from minigpt4.models.mini_gpt4 import MiniGPT4
    from minigpt4.models.shapes import MiniGPT4Shapes

    MiniGPT4Shapes(ModelConfig(**keys))  # imports what building needs
    torch.ones(64, 64) @ torch.ones(64, 64)
    if keys["low_resource"] == "4bit":
        import bitsandbytes  # noqa: F401
    elif keys["low_resource"]:
        import torchao.quantization  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before, most, done = memory(), dict.fromkeys(FIELDS.values(), 0.0), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for name, value in memory().items():
                most[name] = max(most[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = MiniGPT4(ModelConfig(**keys), "cpu")
    done.set()
    watcher.join()
    # Quantized tensors are subclasses that hold others; only what is plain can be counted by its size.
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) / 2**20
    return {"weights": weights, "rss": memory()["peak"] - before["now"], "own": most["own"] - before["own"],
            "file": most["file"] - before["file"], "after": memory()["own"] - before["own"]}  # fmt: skip


def in_a_process_of_its_own(keys: dict, folder: Path) -> dict[str, float]:
    (folder / "keys.json").write_text(json.dumps(keys))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    # Matrices of a 7B LLM are larger than glibc's limit of 32 MB for its heap, and are given back when they are freed.
    # With a lower limit so are those of this small one.
    environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    done = subprocess.run(
        [sys.executable, __file__, "--watch", str(folder / "keys.json")],
        capture_output=True, text=True, env=environment, timeout=120, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="read from Linux's /proc")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[dict, Path]:
    """The hardest files: the LLM in fp32 and the ViT in fp16, which become bf16 and fp32, so everything is cast."""
    folder = tmp_path_factory.mktemp("files")
    return write_files(folder, "bin", torch.float32), folder


def test_loading_holds_the_weights_once(written):
    found = in_a_process_of_its_own(*written)
    assert found["weights"] > 900
    assert found["own"] / found["weights"] < MOST, found


def test_quantizing_never_holds_the_full_llm(written):
    keys, folder = written
    found = in_a_process_of_its_own(keys | {"low_resource": True}, folder)
    assert found["own"] - found["after"] < 100, found  # nothing was held that is not held at the end
    assert found["after"] < found["weights"], found  # `weights` counts the bf16 that int8 stands for


if __name__ == "__main__":
    if sys.argv[1] == "--watch":
        print(json.dumps(watch_loading(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        out = Path(sys.argv[1])
        for form, stored in (("safetensors", torch.float16), ("bin", torch.float32), ("safetensors", torch.bfloat16)):
            made_keys = write_files(out, form, stored)
            for low in (False, "8bit", "4bit"):
                figures = in_a_process_of_its_own(made_keys | {"low_resource": low}, out)
                shown = ", ".join(f"{k} {v:.0f} MB" for k, v in figures.items())
                print(
                    f"{form} {stored} low_resource {low}: {shown}; {figures['rss'] / figures['weights']:.2f}",
                    flush=True,
                )
            for file in out.glob("llm/*"):
                file.unlink()
