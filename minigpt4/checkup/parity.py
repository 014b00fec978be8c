"""`minigpt4 parity DIR`: does this MiniGPT-4 compute what the original does?

DIR is a golden set: tiny random weights and the numbers that the original's code made of them (tests/golden/data/a is
one). The model is built through the real loaders, every array is compared, and the largest errors are printed.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..common.checkpoint import read_state
from ..common.errors import CheckpointError
from ..common.optims import linear_warmup_cosine_lr, parameter_groups
from ..common.registry import PROCESSORS
from .golden import golden_model, read_arrays, read_meta

TOLERANCE = 1e-4
# Arrays that are what the numbers were made from, or that show in another array.
INPUTS = {"image", "images", "chat_image", "raw_uint8", "train_crop_ijhw"}


@dataclass(frozen=True)
class Row:
    """One comparison: the largest absolute error, or infinity where shapes or exact values differ."""

    file: str
    array: str
    error: float
    exact: bool  # ids, labels, masks: must be equal

    def holds(self, tolerance: float = TOLERANCE) -> bool:
        return self.error <= (0 if self.exact else tolerance)


def compare(golden: Path, device: torch.device | str = "cpu") -> Iterator[Row]:
    """Every array of a golden set against ours, which `device` computes in fp32.

    Raises:
        CheckpointError: DIR is no golden set, or its weights do not fit the dimensions it states.
    """
    golden = Path(golden)
    meta = read_meta(golden)
    from .. import processors  # noqa: F401  (fills the registry)

    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        model = golden_model(golden, files, device).eval()
        present = {file.stem for file in golden.glob("*.npz")}
        if "forward" in present:
            yield from _vision(golden, model)
        for case in ("stage1", "stage1_eos_in_text", "stage2"):
            if case in present:
                yield from _loss(golden, files, case, meta[f"{case}.npz"], device)
        if "train_run" in present:
            yield from _training(golden, files, meta["train_run"], device)
        if "image" in present:
            yield from _images(golden, meta["config"]["vit"]["img_size"])
        for name in ("chat", "chat_unk"):
            if name in present:
                yield from _chat(golden, model, name, meta[name])
        yield from _meta(golden, model, meta)


def _row(file: str, array: str, ours, theirs: np.ndarray) -> Row:
    if torch.is_tensor(ours):
        ours = (ours.float() if ours.is_floating_point() else ours).detach().cpu().numpy()
    ours = np.asarray(ours)
    exact = theirs.dtype.kind in "iu"
    if ours.shape != theirs.shape:
        return Row(file, array, float("inf"), exact)
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    return Row(file, array, float(error) if np.isfinite(error) else float("inf"), exact)


@torch.no_grad()
def _vision(golden: Path, model) -> Iterator[Row]:
    from ..models.eva_vit import encode_tokens

    g = read_arrays(golden, "forward")
    image = torch.from_numpy(g["image"]).to(model.device)
    patches = encode_tokens(model.visual_encoder, image)
    normed = model.ln_vision(patches)
    queries = model.Qformer(
        query_embeds=model.query_tokens.expand(len(image), -1, -1), encoder_hidden_states=normed
    ).last_hidden_state
    projected = model.encode_img(image)
    yield _row("forward", "vit_out", patches, g["vit_out"])
    yield _row("forward", "ln_vision_out", normed, g["ln_vision_out"])
    yield _row("forward", "qformer_out", queries, g["qformer_out"])
    yield _row("forward", "proj_out", projected, g["proj_out"])
    yield _row("forward", "atts_img", torch.ones(projected.shape[:2], dtype=torch.long), g["atts_img"])


def _loss(golden: Path, files: Path, case: str, facts: dict, device: torch.device | str) -> Iterator[Row]:
    from ..models.batch import full_labels, to_device

    g, image = read_arrays(golden, case), torch.from_numpy(read_arrays(golden, "forward")["image"])
    model = golden_model(golden, files, device, max_txt_len=facts["max_txt_len"], end_sym=facts["end_sym"])
    model.prompt_list = [facts["prompt"]] if facts["prompt"] else []
    samples = {"image": image, "text_input": facts["captions"]}

    batch = to_device(model.build_batch(samples), model.device)
    start = g["attention_mask"].shape[1] - g["input_ids"].shape[1]  # of the text
    yield _row(case, "input_ids", batch["input_ids"][:, start:], g["input_ids"])
    yield _row(case, "text_attention_mask", batch["attention_mask"][:, start:], g["text_attention_mask"])
    if "prompt_before_ids" in g:
        before, after = facts["prompt"].split("<ImageHere>")
        yield _row(case, "prompt_before_ids", model.token_ids(before), g["prompt_before_ids"])
        yield _row(case, "prompt_after_ids", model.token_ids(after), g["prompt_after_ids"])
    inputs = {"inputs_embeds": model.embed_batch(batch), "labels": full_labels(batch)} | batch
    for array in ("inputs_embeds", "attention_mask", "labels"):
        yield _row(case, array, inputs[array], g[array])

    with torch.no_grad():
        logits = model.llama_model(
            inputs_embeds=inputs["inputs_embeds"], attention_mask=inputs["attention_mask"]
        ).logits
    real = g["attention_mask"] == 1
    yield _row(case, "logits", logits[torch.from_numpy(real)], g["logits"][real])
    per_token = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="none"
    ).reshape(len(logits), -1)
    yield _row(case, "per_token_loss", per_token, g["per_token_loss"])

    loss = model(samples)["loss"]
    loss.backward()
    yield _row(case, "loss", loss, g["loss"])
    yield _row(case, "grad_llama_proj_weight", model.llama_proj.weight.grad, g["grad_llama_proj_weight"])
    yield _row(case, "grad_llama_proj_bias", model.llama_proj.bias.grad, g["grad_llama_proj_bias"])


def _training(golden: Path, files: Path, facts: dict, device: torch.device | str) -> Iterator[Row]:
    """The steps of meta's `batch_rule`."""
    g, run, captions = read_arrays(golden, "train_run"), facts["run_cfg"], facts["captions"]
    model = golden_model(golden, files, device)
    optimizer = torch.optim.AdamW(parameter_groups(model, run["weight_decay"]), lr=run["init_lr"])
    losses, rates = [], []
    for step in range(len(g["loss"])):
        rate = linear_warmup_cosine_lr(
            step,
            total_steps=run["max_epoch"] * run["iters_per_epoch"],
            **{k: run[k] for k in ("init_lr", "min_lr", "warmup_lr", "warmup_steps")},
        )
        if run["iters_per_epoch"] <= step < run["warmup_steps"]:
            rate = float(g["lr"][step])  # the original's warm-up began anew in every epoch; ours is mended
        for group in optimizer.param_groups:
            group["lr"] = rate
        i = step % len(captions)
        image = torch.from_numpy(g["images"][step % len(g["images"])])
        loss = model({"image": image, "text_input": captions[i:] + captions[:i]})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(rate)
    yield _row("train_run", "loss", np.array(losses), g["loss"])
    yield _row("train_run", "lr", np.array(rates), g["lr"])
    for name in ("weight", "bias"):
        trained = getattr(model.llama_proj, name)
        yield _row("train_run", f"final_llama_proj_{name}", trained, g[f"final_llama_proj_{name}"])
        if (golden / "checkpoint_1.pth").is_file():
            written = read_state(golden / "checkpoint_1.pth")[f"llama_proj.{name}"]
            yield _row("checkpoint_1.pth", f"llama_proj.{name}", trained, written.numpy())


def _images(golden: Path, size: int) -> Iterator[Row]:
    g = read_arrays(golden, "image")
    image = Image.fromarray(g["raw_uint8"])
    yield _row("image", "eval_out", PROCESSORS.get("blip2_image_eval")(image_size=size)(image), g["eval_out"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)  # as the set was made
        ours = PROCESSORS.get("blip2_image_train")(image_size=size)(image)
    yield _row("image", "train_out", ours, g["train_out"])


def _chat(golden: Path, model, name: str, turns: list[dict]) -> Iterator[Row]:
    from ..conversation.chat import Chat
    from ..conversation.prompts import VICUNA_V0

    g = read_arrays(golden, name)
    # The original's stops are ids of LLaMA's own vocabulary, which a small one has not: it wrote on past a `###`.
    chat = Chat(model, None, replace(VICUNA_V0, stop=()))
    conv = chat.new_conversation()
    chat.upload_img(torch.from_numpy(g["chat_image"]), conv)
    yield _row(name, "image_emb", conv.pending[0][None], g["image_emb"])
    seen: list[torch.Tensor] = []
    hook = model.llama_model.get_output_embeddings().register_forward_hook(lambda *a: seen.append(a[2][0, -1].clone()))
    try:
        for number, turn in enumerate(turns, start=1):
            chat.ask(turn["question"], conv)
            segments = conv.segments()
            context = model.embed_segments(segments)
            bos = [model.tokenizer.bos_token_id]
            for i, text in enumerate([s for s in segments if isinstance(s, str)]):
                ids = (bos if i == 0 else []) + model.token_ids(text)
                yield _row(name, f"turn{number}_seg{i}_ids", ids, g[f"turn{number}_seg{i}_ids"])
            yield _row(name, f"turn{number}_context_embs", context, g[f"turn{number}_context_embs"])
            seen.clear()
            greedy = g[f"turn{number}_greedy_ids"]
            _, ids = chat.answer(conv, do_sample=False, max_new_tokens=len(greedy))
            yield _row(name, f"turn{number}_greedy_ids", ids, greedy)
            yield _row(name, f"turn{number}_step_logits", torch.stack(seen), g[f"turn{number}_step_logits"])
            conv.turns[-1].answer = turn["answer_text"]  # with the `</s>` that the original left in it
    finally:
        hook.remove()


def _meta(golden: Path, model, meta: dict) -> Iterator[Row]:
    """One row for each kind of fact in meta.json: infinity where any of its cases differs."""
    from .parity_meta import facts

    g = read_arrays(golden, "chat") if (golden / "chat.npz").is_file() else {}
    image, context = (torch.from_numpy(g[k]) if k in g else None for k in ("chat_image", "turn1_context_embs"))
    errors: dict[str, float] = {}
    for name, ours, theirs in facts(model, meta, image, context):
        errors[name] = max(errors.get(name, 0.0), 0.0 if ours == theirs else float("inf"))
    yield from (Row("meta.json", name, error, exact=True) for name, error in errors.items())


def uncompared(golden: Path, rows: list[Row]) -> list[str]:
    """Arrays of the set that no row is about."""
    seen = {(row.file, row.array) for row in rows}
    return [
        f"{file.stem}.{array}"
        for file in sorted(golden.glob("*.npz"))
        if file.stem != "weights"
        for array in read_arrays(golden, file.stem)
        if array not in INPUTS and (file.stem, array) not in seen
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("golden", metavar="DIR", help="a golden set, e.g. tests/golden/data/a")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest error allowed (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table; exit code 1 when an array is past the tolerance."""
    rows = []
    print(f"{'file':20} {'array':28} {'largest error':>14}")
    for row in compare(Path(args.golden)):
        rows.append(row)
        verdict = "" if row.holds(args.tolerance) else "  PAST TOLERANCE" if not row.exact else "  DIFFERS"
        error = "equal" if row.exact and not row.error else f"{row.error:.2e}"
        print(f"{row.file:20} {row.array:28} {error:>14}{verdict}")
    if not rows:
        raise CheckpointError(f"{args.golden}: nothing to compare: the set has weights, but no other .npz file")
    left = uncompared(Path(args.golden), rows)
    if left:
        print(f"not compared: {', '.join(left)}")
    failed = sum(not row.holds(args.tolerance) for row in rows)
    print(f"{len(rows)} arrays, {failed} past {args.tolerance:g}")
    return 1 if failed else 0
