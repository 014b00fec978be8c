"""`minigpt4 prepare-vicuna` holds one tensor at a time: a model of 300 MB is made in the memory of much less."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import LlamaConfig

from minigpt4.convert.vicuna.llama_meta import config_json, weights_of

# 150M parameters, 299 MB in fp16; the largest tensor is 11 MB.
SIZES = LlamaConfig(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16, vocab_size=384
)
SHARD = 108_000_000
MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from minigpt4.convert.vicuna.prepare import open_job, prepare
torch.set_num_threads(1)
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
peak, done = [anonymous()] * 2, threading.Event()
def watch():
    while not done.is_set():
        peak[1] = max(peak[1], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
base, delta, out, shard = sys.argv[1:]
prepare(open_job(Path(base), Path(delta), int(shard)), Path(out))
done.set()
watcher.join()
print("peak", peak[1] - peak[0])
"""


def write_folder(folder, scale: float, norm: float, kind: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(SIZES, torch.float16)))
    block = torch.randn(2816 * 1024, generator=torch.Generator().manual_seed(0)).mul_(scale).half()
    shapes, weight_map = {name: weight.shape for name, weight in weights_of(SIZES).items()}, {}

    def tensor(name: str) -> torch.Tensor:
        shape = shapes[name]
        whole = torch.full(shape, norm) if len(shape) == 1 else block[: torch.Size(shape).numel()].view(shape)
        return whole.half()

    tensors = {name: torch.empty(shape, dtype=torch.half, device="meta") for name, shape in shapes.items()}
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD)
    for file, names in plan.filename_to_tensors.items():
        if kind == "pytorch_model.bin":
            file = file.replace("safetensors", "bin")
            torch.save({name: tensor(name).clone() for name in names}, folder / file)
        else:
            save_file({name: tensor(name).clone() for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_of_three_files_is_made_in_less_memory_than_one(tmp_path, golden_dir):
    write_folder(tmp_path / "llama", 0.02, 1.0, "pytorch_model.bin")
    write_folder(tmp_path / "delta", 0.001, 0.001, "model.safetensors")
    (tmp_path / "llama/tokenizer.model").write_bytes((golden_dir / "tokenizer/tokenizer.model").read_bytes())
    arguments = [tmp_path / "llama", tmp_path / "delta", tmp_path / "out", SHARD]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=120
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    sizes = [file.stat().st_size for file in files]
    assert len(files) == 3 and sum(sizes) > 290e6
    peak = int(done.stdout.split("peak")[1])
    assert 5e6 < peak < 0.75 * max(sizes), f"{peak / 1e6:.0f} MB"
