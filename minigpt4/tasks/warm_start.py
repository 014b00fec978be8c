"""`minigpt4 warm-start --cfg-path X`: fit the projection to the captions' words, a short step before stage 1.

Not in the paper. X is a stage-1 config; the step writes a `checkpoint_0.pth`, which stage 1 takes as `model.ckpt`. No
layer of the LLM runs: only its input embeddings are read, and the frozen vision side sees each picture once. `fit`
finds out which of a caption's tokens each query can tell, `settle` then lays the queries on these tokens' embeddings,
where the LLM can read them.

Notation for shapes: N pictures, B batch, Q image tokens, V tokens that the captions use; D_q, D_llm widths.
"""

import argparse
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
from ..common.logger import MetricLog
from ..common.precision import resolve_precision
from ..common.registry import TASKS
from .image_text_pretrain import build_model

SURE = 12  # the logit of a word whose embedding, of average length, a query lies on
BATCH, RATE = 64, 3e-3  # of AdamW, whose rate falls to zero along a cosine
NORM_WEIGHT = 1.0  # of the penalty that keeps the outputs about as long as the embeddings
SPREAD, LENGTH = 2.5, 1.4  # of the outputs at last, see `settle`; by how well SmolLM2 then reads the words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cfg-path", required=True, help="a stage-1 config")
    add("--options", nargs="+", default=[], metavar="a.b=c", help="override keys of the config")
    add("--out", type=Path, metavar="DIR", help="gets checkpoint_0.pth (default: warm_start/ beside run.output_dir)")
    add("--samples", type=int, default=4096, metavar="N", help="pictures to look at (default: %(default)s)")
    add("--epochs", type=int, default=12, metavar="N", help="passes over them (default: %(default)s)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)")


def run(args: argparse.Namespace) -> int:
    """Fit the projection and write its checkpoint."""
    for flag, value in (("--samples", args.samples), ("--epochs", args.epochs)):
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
    vocabulary = model.embed_ids(ids).detach().float()  # (V, D_llm)
    print(f"warm start: {len(texts):,} pictures, {len(ids):,} tokens in their captions", flush=True)
    folder = args.out or Path(config.run.output_dir).with_name("warm_start")
    folder.mkdir(parents=True, exist_ok=True)
    steps = fit(model.llama_proj, queries, targets, vocabulary, args.epochs, folder)
    settle(model.llama_proj, queries, targets, vocabulary)
    file = folder / "checkpoint_0.pth"
    save_model(file, model.trained_state(), {"epoch": 0, "step": steps, "config": config.plain()})
    print(f"{file}: give it to stage 1 as model.ckpt")
    return 0


@torch.no_grad()
def read_samples(model: nn.Module, loader, count: int) -> tuple[Tensor, list[str]]:
    """What enters the projection for the next `count` samples of the loader, fp16 (N, Q, D_q), and their texts. Raises
    DataError when no sample can be read."""
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
    """The tokens of N captions -> the ids of all of them (V), and the weight of each in each caption (N, V). A row adds
    up to 1. Rare tokens weigh more, log(N / captions with the token): no list of stop words is needed."""
    often = Counter(token for row in rows for token in row)
    ids = sorted(often)
    column = {token: i for i, token in enumerate(ids)}
    table = torch.zeros(len(rows), len(ids))
    for row, tokens in zip(table, rows, strict=True):
        for token in tokens:
            row[column[token]] = math.log(len(rows) / often[token])
    return torch.tensor(ids), table / table.sum(1, keepdim=True).clamp(min=1e-6)


def word_logits(queries: Tensor, vocabulary: Tensor) -> Tensor:
    """(B, Q, D_llm), (V, D_llm) -> (B, Q, V): SURE where a query lies on an embedding of average length."""
    return queries @ vocabulary.T * (SURE / vocabulary.norm(dim=1).mean() ** 2)


def words_loss(queries: Tensor, vocabulary: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy between a caption's tokens and the mean of its queries' choices among the vocabulary: a scalar, of
    the projected queries (B, Q, D_llm), the embeddings of the tokens (V, D_llm) and their weights (B, V)."""
    chosen = word_logits(queries, vocabulary).log_softmax(-1)  # (B, Q, V)
    return -(targets * (chosen.logsumexp(1) - math.log(chosen.shape[1]))).sum(1).mean()


def fit(projection: nn.Module, queries: Tensor, targets: Tensor, vocabulary: Tensor, epochs: int, folder: Path) -> int:
    """Train the projection (N, Q, D_q) -> (N, Q, D_llm); log.jsonl in `folder`. Returns the steps."""
    length, device = vocabulary.norm(dim=1).mean(), vocabulary.device
    optimizer = torch.optim.AdamW(projection.parameters(), lr=RATE, weight_decay=0.05)
    per_epoch = math.ceil(len(queries) / BATCH)
    (folder / "log.jsonl").unlink(missing_ok=True)
    metrics, started, step = MetricLog(folder), time.monotonic(), 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(queries)).split(BATCH):
            now = optimizer.param_groups[0]["lr"] = 0.5 * RATE * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
            projected = projection(queries[rows].to(device).float())
            loss = words_loss(projected, vocabulary, targets[rows].to(device))
            (loss + NORM_WEIGHT * (projected.norm(dim=-1) / length - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            metrics.write(step, loss=loss.item(), lr=now)
        print(f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}  {time.monotonic() - started:.0f} s", flush=True)
    metrics.close()
    return step


@torch.no_grad()
def settle(projection: nn.Module, queries: Tensor, targets: Tensor, vocabulary: Tensor) -> None:
    """Solve the projection's last layer by least squares (ridge): each query's output is to be the mean of the
    embeddings that it chooses among its caption's tokens. Least squares shrink what tells the outputs apart, so that is
    made SPREAD times as large; then they are made LENGTH times as long as an embedding."""
    *early, last = projection if isinstance(projection, nn.Sequential) else [projection]
    gram, right = 0.0, 0.0
    for rows in torch.arange(len(queries)).split(BATCH):
        hidden = nn.Sequential(*early)(queries[rows].to(vocabulary.device).float())  # (B, Q, D)
        own = 2 * (targets[rows].to(vocabulary.device) + 1e-4).log()[:, None]  # rare tokens first
        wanted = (word_logits(last(hidden), vocabulary) + own).softmax(-1) @ vocabulary  # (B, Q, D_llm)
        hidden = nn.functional.pad(hidden, (0, 1), value=1.0).flatten(0, 1).double()  # a last column for the bias
        gram, right = gram + hidden.T @ hidden, right + hidden.T @ wanted.flatten(0, 1).double()
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    solved = torch.linalg.solve(gram + ridge, right)  # (D + 1, D_llm)
    mean = gram[-1] / gram[-1, -1] @ solved  # of the outputs
    solved *= SPREAD
    solved[-1] += (1 - SPREAD) * mean
    squared = (solved * (gram @ solved)).sum() / queries[..., 0].numel()  # of the outputs' length, its mean
    solved *= LENGTH * vocabulary.norm(dim=1).mean() / squared.sqrt()
    last.weight.copy_(solved[:-1].T)
    last.bias.copy_(solved[-1])
