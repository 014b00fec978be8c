"""`minigpt4 warm-start --cfg-path X`: fit the projection to the captions' words, a short step before stage 1.

Not in the paper. Stage 1 spends most of its steps on moving the projection's outputs into the space of the LLM's input
embeddings. This step does it without the LLM: each projected query is compared with the embeddings of the caption's
tokens, and no LLM layer runs. The frozen vision side sees each picture once. X is a stage-1 config; the step writes
`checkpoint_0.pth`, which stage 1 takes as `model.ckpt`.

Notation for shapes: N pictures, B batch, Q image tokens, V tokens that the captions use; D_q, D_llm widths.
"""

import argparse
import dataclasses
import math
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..common.checkpoint import save_model
from ..common.config import load_config
from ..common.dist_utils import choose_device
from ..common.errors import ConfigError, DataError
from ..common.logger import MetricLog, plot_log
from ..common.precision import resolve_precision
from ..common.registry import TASKS
from .image_text_pretrain import build_model

SURE = 12  # the logit of a word whose embedding, of average length, a query lies on
BATCH = 64
NORM_WEIGHT = 1.0  # of the penalty that keeps the outputs about as long as the embeddings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cfg-path", required=True, help="a stage-1 config")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")
    add("--out", type=Path, metavar="DIR", help="gets checkpoint_0.pth (default: warm_start/ beside run.output_dir)")
    add("--samples", type=int, default=4096, metavar="N", help="pictures to look at (default: %(default)s)")
    add("--epochs", type=int, default=12, metavar="N", help="passes over them (default: %(default)s)")
    add("--lr", type=float, default=3e-3, help="learning rate of AdamW at its start (default: %(default)s)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")


def run(args: argparse.Namespace) -> int:
    """Fit the projection and write its checkpoint."""
    for flag, value in (("--samples", args.samples), ("--epochs", args.epochs), ("--lr", args.lr)):
        if value <= 0:
            raise ConfigError(f"{flag}: {value} should be above 0")
    config = load_config(args.cfg_path, [*args.options, "model.ckpt=null"], mode="train")
    device = choose_device(args.device, f"--device {args.device}")
    torch.manual_seed(config.run.seed)
    task = TASKS.get(config.run.task)(config)
    model = build_model(
        config.model, device, precision=resolve_precision(config.model, device, config.run),
        llm_apart=True,  # its layers stay on the disk
    )  # fmt: skip
    loader = task.build_loader(0, 1, config.run.seed)
    try:
        queries, texts = read_samples(model, loader, args.samples)
    finally:
        loader.close()
    ids, targets = token_targets([set(row) for row in model.token_ids([f" {text}" for text in texts])])
    with torch.no_grad():
        vocabulary = model.embed_ids(ids).float()  # (V, D_llm)
    print(f"warm start: {len(texts):,} pictures, {len(ids):,} tokens in their captions", flush=True)
    folder = args.out or Path(config.run.output_dir).with_name("warm_start")
    folder.mkdir(parents=True, exist_ok=True)
    steps = fit(model.llama_proj, queries, targets, vocabulary, args.epochs, args.lr, folder)
    plain = {key: value for key, value in dataclasses.asdict(config).items() if key in ("model", "datasets", "run")}
    save_model(folder / "checkpoint_0.pth", model.trained_state(), {"epoch": 0, "step": steps, "config": plain})
    print(f"{folder / 'checkpoint_0.pth'}: give it to stage 1 as model.ckpt")
    return 0


@torch.no_grad()
def read_samples(model: nn.Module, loader, count: int) -> tuple[Tensor, list[str]]:
    """What enters the projection for the next `count` samples of the loader, fp16 (N, Q, D_q), and their texts.

    Raises:
        DataError: no sample can be read.
    """
    model.eval()
    entered: list[Tensor] = []
    hook = model.llama_proj.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].half()))
    texts: list[str] = []
    with tqdm(total=count, desc="vision", unit="picture", mininterval=5) as bar:
        for name, batch in loader:
            if batch["hopeless"]:
                raise DataError(f"datasets.{name}: no sample can be read, e.g. {batch['bad'][0]}")
            if "image" not in batch:  # all of it is bad
                continue
            model.encode_img(batch["image"].to(model.device))
            texts += [text if isinstance(text, str) else " ".join(text) for text in batch["text_input"]]
            bar.update(min(len(batch["text_input"]), count - bar.n))
            if len(texts) >= count:
                break
    hook.remove()
    return torch.cat(entered)[:count], texts[:count]


def token_targets(rows: list[set[int]]) -> tuple[Tensor, Tensor]:
    """The tokens of N captions -> the ids of all of them (V), and the weight of each in each caption (N, V).

    A row adds up to 1. Rare tokens weigh more, log(N / captions with the token): no list of stop words is needed.
    """
    often = Counter(token for row in rows for token in row)
    ids = sorted(often)
    column = {token: i for i, token in enumerate(ids)}
    table = torch.zeros(len(rows), len(ids))
    for row, tokens in zip(table, rows, strict=True):
        for token in tokens:
            row[column[token]] = math.log(len(rows) / often[token])
    return torch.tensor(ids), table / table.sum(1, keepdim=True).clamp(min=1e-6)


def words_loss(queries: Tensor, vocabulary: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy between a caption's tokens and the mean of its queries' choices among the vocabulary: a scalar.

    Args:
        queries: projected, (B, Q, D_llm).
        vocabulary: input embeddings of the tokens that count, (V, D_llm).
        targets: the weight of each token, (B, V).
    """
    scale = SURE / vocabulary.norm(dim=1).mean() ** 2
    chosen = (queries @ vocabulary.T * scale).log_softmax(-1)  # (B, Q, V)
    return -(targets * (chosen.logsumexp(1) - math.log(chosen.shape[1]))).sum(1).mean()


def fit(
    projection: nn.Module, queries: Tensor, targets: Tensor, vocabulary: Tensor, epochs: int, lr: float, folder: Path
) -> int:
    """Train the projection (N, Q, D_q) -> (N, Q, D_llm); log.jsonl and loss.png in `folder`. Returns the steps."""
    length, device = vocabulary.norm(dim=1).mean(), vocabulary.device
    optimizer = torch.optim.AdamW(projection.parameters(), lr=lr, weight_decay=0.05)
    per_epoch = math.ceil(len(queries) / BATCH)
    (folder / "log.jsonl").unlink(missing_ok=True)
    metrics, started, step = MetricLog(folder), time.monotonic(), 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(queries)).split(BATCH):
            now = optimizer.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
            projected = projection(queries[rows].to(device).float())
            loss = words_loss(projected, vocabulary, targets[rows].to(device))
            (loss + NORM_WEIGHT * (projected.norm(dim=-1) / length - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            metrics.write(step, loss=loss.item(), lr=now)
        print(f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}  {time.monotonic() - started:.0f} s", flush=True)
    metrics.close()
    plot_log(folder / "log.jsonl", folder / "loss.png")
    return step
