"""`python -m tests.parity DIR`: does this MiniGPT-4 compute what the original does?

DIR is a golden set: tiny random weights and the numbers that the original's code made of them (tests/golden/data/a is
one). The model is built through the real loaders, every array is compared, and the largest errors are printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from minigpt4 import processors  # noqa: F401  (fills the registry)
from minigpt4.common.errors import main_guard
from minigpt4.common.registry import PROCESSORS
from minigpt4.common.schema import ModelConfig
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import VICUNA_V0
from minigpt4.models.batch import full_labels, to_device
from minigpt4.models.eva_vit import encode_tokens
from minigpt4.models.mini_gpt4 import MiniGPT4

from .golden_set import read_arrays, read_meta, write_published_files

TOLERANCE = 1e-4
LEVEL = 0.0151  # one of 255 levels of a pixel, after normalization: as far as the resizing of training may differ
# Arrays that are what the numbers were made from, or that show in another array.
INPUTS = {"image", "images", "chat_image", "raw_uint8", "train_crop_ijhw"}
Arrays = dict[str, np.ndarray]
Found = Iterator[tuple[str, object]]  # (array, ours)


@dataclass(frozen=True)
class Row:
    """One comparison: the largest absolute error, or infinity where shapes or exact values differ."""

    file: str
    array: str
    error: float
    exact: bool  # ids, labels, masks: must be equal

    def holds(self, tolerance: float = TOLERANCE) -> bool:
        if self.array == "train_out":
            tolerance = max(tolerance, LEVEL)
        return self.error <= (0 if self.exact else tolerance)


def compare(golden: Path, device: torch.device | str = "cpu") -> Iterator[Row]:
    """Every array of a golden set against ours, which `device` computes in fp32.

    Raises:
        CheckpointError: DIR is no golden set, or its weights do not fit the dimensions it states.
    """
    golden = Path(golden)
    meta = read_meta(golden)
    with tempfile.TemporaryDirectory() as folder:
        files = write_published_files(golden, Path(folder))

        def build(**changes) -> MiniGPT4:
            return MiniGPT4(ModelConfig(**{**files, **changes}), device)

        model = build().eval()
        arrays = {file.stem: read_arrays(golden, file.stem) for file in golden.glob("*.npz")}
        image = torch.from_numpy(arrays["forward"]["image"]) if "forward" in arrays else None
        computed = {"forward": lambda g: vision(g, model)}
        for case in ("stage1", "stage1_eos_in_text", "stage2"):
            computed[case] = partial(loss, build=build, facts=meta.get(f"{case}.npz"), image=image)
        computed["image"] = partial(images, size=meta["config"]["vit"]["img_size"])
        computed |= {case: partial(chat, model=model, turns=meta.get(case)) for case in ("chat", "chat_unk")}
        for file in [file for file in computed if file in arrays]:
            for array, ours in computed[file](arrays[file]):
                yield row(file, array, ours, arrays[file][array])


def row(file: str, array: str, ours, theirs: np.ndarray) -> Row:
    if torch.is_tensor(ours):
        ours = (ours.float() if ours.is_floating_point() else ours).detach().cpu().numpy()
    ours, exact = np.asarray(ours), theirs.dtype.kind in "iu"
    if ours.shape != theirs.shape:
        return Row(file, array, float("inf"), exact)
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    return Row(file, array, float(error) if np.isfinite(error) else float("inf"), exact)


@torch.no_grad()
def vision(g: Arrays, model: MiniGPT4) -> Found:
    image = torch.from_numpy(g["image"]).to(model.device)
    patches = encode_tokens(model.visual_encoder, image)
    normed = model.ln_vision(patches)
    queries = model.query_tokens.expand(len(image), -1, -1)
    yield "vit_out", patches
    yield "ln_vision_out", normed
    yield "qformer_out", model.Qformer(query_embeds=queries, encoder_hidden_states=normed).last_hidden_state
    projected = model.encode_img(image)
    yield "proj_out", projected
    yield "atts_img", torch.ones(projected.shape[:2], dtype=torch.long)


def loss(g: Arrays, build: Callable[..., MiniGPT4], facts: dict, image: torch.Tensor) -> Found:
    model = build(max_txt_len=facts["max_txt_len"], end_sym=facts["end_sym"])
    model.prompt_list = [facts["prompt"]] if facts["prompt"] else []
    samples = {"image": image, "text_input": facts["captions"]}
    batch = to_device(model.build_batch(samples), model.device)
    start = g["attention_mask"].shape[1] - g["input_ids"].shape[1]  # of the text
    yield "input_ids", batch["input_ids"][:, start:]
    yield "text_attention_mask", batch["attention_mask"][:, start:]
    if "prompt_before_ids" in g:
        before, after = facts["prompt"].split("<ImageHere>")
        yield "prompt_before_ids", model.token_ids(before)
        yield "prompt_after_ids", model.token_ids(after)
    embeds, mask, labels = model.embed_batch(batch), batch["attention_mask"], full_labels(batch)
    yield "inputs_embeds", embeds
    yield "attention_mask", mask
    yield "labels", labels
    with torch.no_grad():
        logits = model.llama_model(inputs_embeds=embeds, attention_mask=mask).logits
    per_token = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    padding = torch.from_numpy(g["attention_mask"] == 0)
    yield "logits", logits.cpu().masked_scatter(padding[..., None], torch.from_numpy(g["logits"][padding.numpy()]))
    yield "per_token_loss", per_token
    mean = model(samples)["loss"]
    mean.backward()
    yield "loss", mean
    yield "grad_llama_proj_weight", model.llama_proj.weight.grad
    yield "grad_llama_proj_bias", model.llama_proj.bias.grad


def images(g: Arrays, size: int) -> Found:
    image = Image.fromarray(g["raw_uint8"])
    yield "eval_out", PROCESSORS.get("blip2_image_eval")(image_size=size)(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)  # as the set was made
        yield "train_out", PROCESSORS.get("blip2_image_train")(image_size=size)(image)


def chat(g: Arrays, model: MiniGPT4, turns: list[dict]) -> Found:
    # The original's stops are ids of LLaMA's own vocabulary, which a small one has not: it wrote on past a `###`.
    ours = Chat(model, None, replace(VICUNA_V0, stop=()))
    conv = ours.new_conversation()
    ours.upload_img(torch.from_numpy(g["chat_image"]), conv)
    yield "image_emb", conv.pending[0][None]
    seen: list[torch.Tensor] = []
    hook = model.llama_model.get_output_embeddings().register_forward_hook(lambda *a: seen.append(a[2][0, -1].clone()))
    for number, turn in enumerate(turns, start=1):
        ours.ask(turn["question"], conv)
        segments = conv.segments()
        for i, text in enumerate([segment for segment in segments if isinstance(segment, str)]):
            bos = [model.tokenizer.bos_token_id] if i == 0 else []
            yield f"turn{number}_seg{i}_ids", bos + model.token_ids(text)
        yield f"turn{number}_context_embs", model.embed_segments(segments)
        seen.clear()
        new_tokens = len(g[f"turn{number}_greedy_ids"])
        yield f"turn{number}_greedy_ids", ours.answer(conv, do_sample=False, max_new_tokens=new_tokens)[1]
        yield f"turn{number}_step_logits", torch.stack(seen)
        conv.turns[-1].answer = turn["answer_text"]  # with the `</s>` that the original left in it
    hook.remove()


def uncompared(golden: Path, rows: list[Row]) -> list[str]:
    """Arrays of the set that no row is about."""
    seen = {(row.file, row.array) for row in rows}
    return [
        f"{file.stem}.{array}"
        for file in sorted(golden.glob("*.npz"))
        if file.stem not in ("weights", "train_run")  # a training is compared in the tests
        for array in read_arrays(golden, file.stem)
        if array not in INPUTS and (file.stem, array) not in seen
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 when an array is past the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="Compare this model with the original.")
    parser.add_argument("golden", metavar="DIR", help="a golden set, e.g. tests/golden/data/a")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest error allowed (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    rows = []
    print(f"{'file':20} {'array':28} {'largest error':>14}")
    for row in compare(Path(args.golden)):
        rows.append(row)
        verdict = "" if row.holds(args.tolerance) else "  PAST TOLERANCE" if not row.exact else "  DIFFERS"
        error = "equal" if row.exact and not row.error else f"{row.error:.2e}"
        print(f"{row.file:20} {row.array:28} {error:>14}{verdict}")
    left = uncompared(Path(args.golden), rows)
    if left:
        print(f"not compared: {', '.join(left)}")
    failed = sum(not row.holds(args.tolerance) for row in rows)
    print(f"{len(rows)} arrays, {failed} past {args.tolerance:g}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
