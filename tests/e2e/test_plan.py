"""The planner: what it counts on the meta device, against sums done by hand and the figures the paper gives."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from minigpt4.tools.plan.gpus import EFFICIENCY, GPUS, Work, all_reduce, roofline
from torch import nn

from minigpt4.tools.cli import main
from minigpt4.tools.plan import count as plan_count
from minigpt4.tools.plan import table as plan_table
from minigpt4.tools.plan.allocator import MIB, CachingAllocator
from minigpt4.tools.plan.meter import MetaRules, Meter
from minigpt4.tools.plan.predict import (
    GIB,
    SLACK,
    chat_memory,
    largest_batch,
    training_memory,
    training_time,
    what_fits,
)

DOCS = Path(__file__).parents[2] / "docs" / "plan.md"
A100 = GPUS["a100-80g"]
SMALL = (
    "model.vit_kwargs={depth: 2, embed_dim: 64, num_heads: 2}",
    "model.qformer_kwargs={hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 128}",
)


@pytest.fixture(scope="module")
def published():
    """Stage 1 of the paper at full size, with the original's code."""
    return plan_table.setup(plan_table.STAGE1, "vicuna-13b", A100, 4, True)


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("llm")
    plan_count.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000
    ).save_pretrained(folder)
    return str(folder)


def small(llm_folder: str, gpu: str = "a100-80g", *options: str) -> plan_table.Setup:
    return plan_table.setup(plan_table.STAGE2, llm_folder, GPUS[gpu], 1, False, *SMALL, *options)


# -- one operation ----------------------------------------------------------------------------------------------------


def test_a_frozen_linear_layer_is_counted_as_by_hand():
    """2 m k n FLOPs forward and as many for the input's gradient; its input is not kept, an activation's is."""
    with torch.device("meta"):
        layer = nn.Linear(64, 32, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.empty(8, 64, dtype=torch.bfloat16, requires_grad=True)
    with Meter([*layer.parameters(), x]) as meter:
        y = layer(x)
        assert meter.live == 8 * 32 * 2
        y = F.silu(y)
        assert meter.live == 2 * 8 * 32 * 2  # silu's backward needs its input
        y.sum().backward()
    flops = 2 * 8 * 64 * 32
    assert sum(f * n for (f, _, _), n in meter.work.items()) == 2 * flops
    assert meter.work[flops, 2, 2 * (8 * 64 + 64 * 32 + 8 * 32)] == 2  # input, weight, output: each once, either way


def test_what_is_alive_falls_again_and_views_cost_nothing():
    with Meter([]) as meter:
        x = torch.empty(1024, device="meta")
        y = (x + 1).view(32, 32).t()
        del x, y
    assert (meter.live, meter.peak) == (0, 2 * 4096)
    assert list(meter.work) == [(0, 1, 4096), (0, 4, 2 * 4096)]  # made; read and written


def test_a_repeated_operation_is_counted_like_the_first():
    x = torch.empty(4, 4, device="meta")
    with Meter([x]) as meter:
        kept = [x @ x for _ in range(3)]
    assert meter.work == {(128, 4, 3 * 64): 3}
    assert meter.live == 3 * 64 and [y.shape for y in kept] == [(4, 4)] * 3


def test_autocast_holds_on_meta():
    with torch.device("meta"):
        layer, x = nn.Linear(8, 8), torch.empty(2, 8)
    rules = MetaRules(torch.bfloat16)
    with rules.active():
        assert layer(x).dtype == torch.bfloat16
        assert F.layer_norm(layer(x), (8,)).dtype == torch.float32
        with torch.autocast("meta", torch.float16, enabled=False):
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16


def test_the_allocator_rounds_splits_and_merges():
    allocator = CachingAllocator()
    allocator.allocate(1, 3 * MIB)  # a segment of 20 MiB, split
    allocator.allocate(2, 17 * MIB)  # >= 10 MiB needs 17 MiB, which the rest of the segment has
    assert allocator.reserved == 20 * MIB
    allocator.release(1)
    allocator.allocate(3, 11 * MIB)  # 3 MiB are free: a segment of its own, rounded up to 2 MiB
    assert allocator.reserved == 32 * MIB
    allocator.release(2)  # merges with the 3 MiB
    allocator.allocate(4, 20 * MIB)
    assert allocator.reserved == 32 * MIB
    allocator.allocate(5, 100)  # small ones have segments of 2 MiB
    allocator.allocate(6, 1000)
    assert allocator.reserved == 34 * MIB


def test_an_operation_takes_its_arithmetic_or_its_traffic():
    second = A100.tflops16 * 1e12
    assert roofline(Work({(second, 2, 1): 1}), A100) == pytest.approx(1 / EFFICIENCY)
    assert roofline(Work({(second, 4, 1): 1}), A100) == pytest.approx(312 / 19.5 / EFFICIENCY)
    assert roofline(Work({(1, 2, 2039e9): 3}), A100) == pytest.approx(3 / EFFICIENCY)
    assert all_reduce(300e9, A100, 4, 1) == pytest.approx(1.5)
    assert all_reduce(12.5e9, A100, 1, 2) == pytest.approx(1.0)
    assert all_reduce(300e9, A100, 1, 1) == 0


# -- the paper --------------------------------------------------------------------------------------------------------


def test_parameters_are_the_published(published):
    assert {part.name: part.parameters for part in published.parts} == {
        "visual_encoder": 985_894_528, "ln_vision": 2816, "query_tokens": 24_576, "Qformer": 105_137_664,
        "llama_proj": 3_937_280, "llama_model": 13_015_864_320,
    }  # fmt: skip
    assert [part.name for part in published.parts if part.trained] == ["llama_proj"]


def test_the_papers_figures_come_out(published):
    """Times within 1.3x, memory within 15 %: all with the one EFFICIENCY."""
    rows = plan_table.paper_table()[2:]
    ratios = [float(cell) for row in rows if (cell := row.split("|")[-2].strip()) != "-"]
    stage1, stage2, memory, demo, small_demo = ratios
    assert 1 / 1.3 < stage1 < 1.3 and 1 / 1.3 < stage2 < 1.3
    assert 0.85 < memory < 1.15 and 0.85 < demo < 1.15
    assert small_demo < 1.25  # docs/plan.md says why it is not within 15 %


def test_flops_of_stage_1_agree_with_the_rule_of_thumb(published):
    """2 FLOPs a weight and position, forward; in the LLM again for the gradient of its input."""
    step = plan_count.count_step(published.load, 64)
    positions = 1 + 32 + 32
    by_hand = 64 * (2 * 2 * 12.85e9 * positions + 2 * 0.986e9 * 257)
    assert sum(f * n for (f, _, _), n in step.work.items()) == pytest.approx(by_hand, rel=0.05)


def test_the_docs_table_is_the_commands_output(published):
    """The paper's rows and one cell of a device; `minigpt4 plan --table` makes them all, in a minute or more."""
    text = DOCS.read_text()
    between = re.search(r"<!-- plan --table -->\n(.*)\n<!-- end -->", text, re.DOTALL)[1].splitlines()
    heads = [line for line in between if line.startswith("###")]
    assert heads == [
        "### The original, as it ran",
        *(f"### {n}, this implementation" for n in reversed(plan_count.LLMS)),
    ]
    assert between[1:9] == plan_table.paper_table()
    last = next(line for line in reversed(between) if line.startswith(f"| {A100.title}"))
    assert last.split(" | ")[2] == plan_table.training_cell(plan_table.setup(plan_table.STAGE2, "vicuna-7b", A100))
    assert sum(line.startswith("| ") and GPUS["cpu"].title in line for line in between) == len(plan_count.LLMS)


# -- predictions, at small size ---------------------------------------------------------------------------------------


def test_memory_follows_what_the_config_trains_and_keeps(llm_folder):
    plain = training_memory(small(llm_folder)).lines
    again = training_memory(small(llm_folder, "a100-80g", "model.use_grad_checkpoint=True")).lines
    assert again["kept for backward"] < 0.7 * plain["kept for backward"]
    trained = small(llm_folder, "a100-80g", "model.freeze_qformer=False")
    parameters = sum(part.trained for part in trained.parts)
    assert parameters > 64 * 64 + 64 > 0
    assert training_memory(trained).lines["gradients and AdamW"] == 12 * parameters
    eight = training_memory(small(llm_folder, "a100-80g", "model.low_resource=True"))
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 128)  # numbers in the LLM's linear layers
    rows = 2 * (4 * 64 + 2 * 128 + 64)  # each with a fp32 scale
    assert plain["weights"] - eight.lines["weights"] == linear - 4 * rows
    assert eight.lines["kept for backward"] > plain["kept for backward"]  # bitsandbytes keeps what goes in


def test_cpu_runs_in_fp32_without_cudas_allocator(llm_folder):
    setup = small(llm_folder, "cpu")
    load = setup.load
    assert (load.model.llama_precision, load.model.vit_precision, load.autocast) == ("fp32", "fp32", None)
    assert SLACK not in training_memory(setup).lines
    assert small(llm_folder, "v100").load.autocast == torch.float16
    assert small(llm_folder).load.autocast == torch.bfloat16


def test_steps_loading_and_accumulation_are_in_the_time(llm_folder):
    time = training_time(small(llm_folder, "a100-80g", "run.accum_grad_iters=3", "run.num_workers=1"))
    assert time.loading == pytest.approx(12 / 250)
    assert time.loading > time.compute  # so the loader is what takes the time
    assert time.step == pytest.approx(3 * time.loading + time.optimizer)
    assert time.total == pytest.approx(1000 * time.step)


def test_features_stand_for_images_and_the_vit(llm_folder):
    """The ViT's FLOPs go, and loading; the Q-Former sees as many tokens as before, and the weights are there."""
    info = "datasets.cc_sbu_align.build_info.features=f.npy"
    images, features = small(llm_folder), small(llm_folder, "a100-80g", info)
    steps = [plan_count.count_step(setup.load, 12) for setup in (images, features)]
    flops = [sum(f * n for (f, _, _), n in step.work.items()) for step in steps]
    patches = 256 * 64 * 3 * 14 * 14
    block = 257 * (4 * 64 * 64 + 2 * 64 * 279) + 2 * 257 * 257 * 64  # linear layers, attention
    assert flops[0] - flops[1] == 2 * 12 * (patches + 2 * block)
    assert training_time(images).loading > 0 and training_time(features).loading == 0
    assert training_memory(features).lines["weights"] == training_memory(images).lines["weights"]


def test_fsdp_parts_the_layers_and_gathers_them(llm_folder):
    def on_four(parallel):
        options = (*SMALL, f"run.parallel={parallel}")
        return plan_table.setup(plan_table.STAGE2, llm_folder, A100, 4, False, *options)

    layer = 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)  # bytes in bf16
    whole, parted = on_four("ddp"), on_four("fsdp")
    before, after = training_memory(whole).lines, training_memory(parted).lines
    assert before["weights"] - after.pop("weights") == 2 * layer * 3 // 4
    assert after.pop("two layers, gathered") == 2 * layer
    assert after == {name: size for name, size in before.items() if name != "weights"}
    time = training_time(parted)
    assert time.gathering == pytest.approx(2 * 3 / 4 * 2 * layer / 300e9) and training_time(whole).gathering == 0
    alone = plan_table.setup(plan_table.STAGE2, llm_folder, A100, 1, False, *SMALL, "run.parallel=fsdp")
    assert training_memory(alone).lines["weights"] == before["weights"]

    small_gpu = plan_count.replace(A100, memory=(training_memory(whole).total - layer) / GIB)
    ways = [keys for keys, _ in what_fits(plan_count.replace(whole, gpu=small_gpu))]
    assert {"parallel": "fsdp"} in ways and {"low_resource": True} in ways
    ways = [keys for keys, _ in what_fits(plan_count.replace(parted, gpu=small_gpu))]
    assert ways and not any("parallel" in keys or "low_resource" in keys for keys in ways)


def test_the_largest_batch_is_counted(llm_folder):
    setup = small(llm_folder)
    room = training_memory(setup.changed(40)).total / GIB
    fits = plan_table.setup(plan_table.STAGE2, llm_folder, plan_count.replace(A100, memory=room), 1, False, *SMALL)
    batch = largest_batch(fits)
    assert 36 <= batch <= 40
    assert training_memory(fits.changed(batch)).verdict == "fits"
    assert training_memory(fits.changed(50)).verdict != "fits"


def test_a_chats_keys_and_values(llm_folder):
    lines = chat_memory(plan_table.setup(plan_table.DEMO, llm_folder, A100, 1, False, *SMALL)).lines
    assert lines["keys and values"] == pytest.approx(2 * 2 * 64 * 2 * 2000, rel=0.02)  # k and v, layers, width, bytes


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_page_tells_what_to_change(llm_folder, capsys):
    arguments = ["plan", "--cfg-path", plan_table.STAGE2, "--llm", llm_folder, "--options", *SMALL]
    assert main([*arguments, "--gpu", "3090"]) == 0
    text = capsys.readouterr().out
    assert "It fits" in text and "1,000 steps" in text and "RTX 3090" in text
    assert main([*arguments, "--gpu", "3090", "--memory", "0.82"]) == 1
    text = capsys.readouterr().out
    assert "It does not fit" in text
    assert re.search(r"--options run\.batch_size_train=\d+ run\.accum_grad_iters=\d+", text)


def test_the_page_says_what_is_read_instead_of_images(llm_folder, capsys):
    arguments = ["plan", "--cfg-path", plan_table.STAGE2, "--llm", llm_folder, "--options", *SMALL]
    assert main([*arguments, "datasets.cc_sbu_align.build_info.features=f.npy"]) == 0
    text = capsys.readouterr().out
    assert "the ViT does not run" in text and "images a second" not in text
    other = "{builder: captioned_photos, build_info: {storage: x, features: f.npy}}"
    assert main([*arguments, f"datasets.other={other}"]) == 0
    text = capsys.readouterr().out
    assert "every batch is of images" in text and "images a second" in text
    assert main([*arguments, "model.arch=mini_gpt4_words"]) == 1
    assert "plan counts model.arch mini_gpt4; mini_gpt4_words is another" in capsys.readouterr().err


def test_an_llm_that_is_not_there_is_told(capsys):
    assert main(["plan", "--cfg-path", plan_table.STAGE2, "--llm", "vicuna-13"]) == 1
    assert "did you mean 'vicuna-13b'?" in capsys.readouterr().err
    config = plan_table.load_config(plan_table.STAGE2, mode="show")
    sizes, said = plan_count.find_llm(config, None)
    assert sizes.hidden_size == 5120 and "/path/to/vicuna/weights/ is not here" in said
