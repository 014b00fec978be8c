"""Part 1: the numbers of the original's code (golden sets a, b, c), on this device in every precision."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import VICUNA_V0

from ..golden_set import golden_model, read_arrays, read_meta
from ..parity import compare, uncompared
from .setting import GOLDEN, Setting, relative_error

FP32 = 1e-3  # largest absolute error of any array
# Largest relative error (Euclidean norms) of whole arrays; 16-bit numbers have 8 (bf16) or 11 (fp16) significant bits.
HALF = {"bf16": 0.05, "fp16": 0.01}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def measurements(setting: Setting) -> dict[str, Callable[[], dict]]:
    found = {}
    for name in ("a",) if setting.small else ("a", "b", "c"):
        found[f"{name}, fp32"] = partial(exact, setting, GOLDEN / name)
        for dtype in HALF:
            found[f"{name}, {dtype}"] = partial(half, setting, GOLDEN / name, dtype)
    return found


def exact(setting: Setting, golden: Path) -> dict:
    """Every array, TF32 off; ids (greedy ones too), masks and labels must be equal."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = list(compare(golden, setting.device))
    wrong = [f"{row.file}.{row.array} {row.error:.1e}" for row in rows if not row.holds(FP32)]
    wrong += [f"{name} was not compared" for name in uncompared(golden, rows)]
    values = {
        "arrays": len(rows),
        "largest_error": max(row.error for row in rows if not row.exact),
        "greedy_ids_equal": all(row.holds() for row in rows if row.array.endswith("greedy_ids")),
    }
    return values | ({"wrong": ", ".join(wrong)} if wrong else {})


def half(setting: Setting, golden: Path, dtype: str) -> dict:
    """Relative errors of the picture's embeddings, of loss and gradient under autocast, and of the first logits."""
    meta, errors = read_meta(golden), {}
    precision = {"llama_precision": dtype, "vit_precision": dtype}
    image = torch.from_numpy(read_arrays(golden, "forward")["image"])
    for case in ("stage1", "stage2"):
        facts, arrays = meta[f"{case}.npz"], read_arrays(golden, case)
        keys = {key: facts[key] for key in ("max_txt_len", "end_sym")}
        with tempfile.TemporaryDirectory() as folder:
            model = golden_model(golden, Path(folder), setting.device, **precision, **keys)
        model.prompt_list = [facts["prompt"]] if facts["prompt"] else []
        with torch.autocast(setting.device.type, DTYPES[dtype]):
            loss = model({"image": image, "text_input": facts["captions"]})["loss"]
        loss.backward()
        errors[f"{case}_loss"] = relative_error(loss, torch.from_numpy(arrays["loss"]))
        gradient = torch.from_numpy(arrays["grad_llama_proj_weight"])
        errors[f"{case}_gradient"] = relative_error(model.llama_proj.weight.grad, gradient)
    model.eval()
    with torch.no_grad():
        seen = torch.from_numpy(read_arrays(golden, "forward")["proj_out"])
        errors["image_embeddings"] = relative_error(model.encode_img(image), seen)
    errors["first_logits"], same = first_answer(model, golden, meta["chat"][0])
    past = [f"{name} {error:.1e}" for name, error in errors.items() if not error <= HALF[dtype]]
    values = {name: round(error, 5) for name, error in errors.items()} | {"greedy_ids_equal": same}
    return values | ({"wrong": f"past {HALF[dtype]}: {', '.join(past)}"} if past else {})


def first_answer(model, golden: Path, turn: dict) -> tuple[float, str]:
    """The error of the first token's logits; how many greedy ids are equal before the first that is not."""
    arrays, seen = read_arrays(golden, "chat"), []
    chat = Chat(model, None, replace(VICUNA_V0, stop=()))
    conv = chat.new_conversation()
    chat.upload_img(torch.from_numpy(arrays["chat_image"]), conv)
    chat.ask(turn["question"], conv)
    head = model.llama_model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *call: seen.append(call[2][0, -1].clone()))
    theirs = arrays["turn1_greedy_ids"].tolist()
    _, ids = chat.answer(conv, do_sample=False, max_new_tokens=len(theirs))
    hook.remove()
    same = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))
    return relative_error(seen[0], torch.from_numpy(arrays["turn1_step_logits"][0])), f"{same} of {len(theirs)}"
