"""Answers of a model to the items of an evaluation: in batches, kept in files as they come, shared among processes.

`answers/HASH.RANK.jsonl` holds what process RANK answered under the settings that HASH stands for: other settings never
meet these answers, and a killed evaluation goes on behind the last one. Processes need no word with each other: each
owns every WORLD_SIZE-th item, and the first one waits until all have answered.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..common.dist_utils import choose_device, is_launched, rank, training_device, world_size
from ..common.paths import resolve_path, sha256
from ..common.schema import Config
from .records import Record

SMALL = 64 << 20  # bytes; files up to this size are known by their content, larger ones by size and time


@dataclass(frozen=True)
class Item:
    """One question to the model.

    Args:
        question: what it is asked.
        variant: which of the suite's questions this is.
        choices: what to rank by likelihood; empty: it answers in its own words.
    """

    record: Record
    question: str
    variant: str = ""
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Stands for the picture and the question, whatever else is in the evaluation."""
        stat = self.record.image.stat()
        return _sha([self.record.id, stat.st_size, stat.st_mtime_ns, self.question, self.choices])[:20]


def made_from(config: Config, decoding: dict) -> dict:
    """What answers depend on besides their items: the model's keys, the files they name, how answers are drawn."""
    model = asdict(config.model)
    for f in fields(config.model):
        if f.metadata.get("path") and isinstance(model[f.name], str):
            model[f.name] = _mark(Path(resolve_path(model[f.name])))
    processors = {name: asdict(dataset.vis_processor) for name, dataset in config.datasets.items()}
    return {"model": model, "processors": processors, "decoding": decoding}


def _mark(path: Path) -> str | list[str]:
    """A file or folder as a text that changes when it does."""
    if path.is_dir():
        return [f"{p.name} {_mark(p)}" for p in sorted(path.iterdir()) if p.is_file()]
    if not path.is_file():
        return str(path)  # a URL
    stat = path.stat()
    if stat.st_size > SMALL:
        return f"{stat.st_size} bytes, {stat.st_mtime_ns}"
    return sha256(path)


def _sha(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def chat_for(config: Config, device: str):
    """The config's model, ready to answer; under torchrun each process takes its own GPU.

    Args:
        device: what `--device` says.
    """
    from ..serve import build_chat

    if is_launched():
        return build_chat(config, training_device(device))
    return build_chat(config, choose_device(device, f"--device {device}"))


def answer_all(
    make_chat: Callable,
    items: Sequence[Item],
    source: dict,
    folder: Path,
    batch: int,
    say: str = "",
    everywhere: bool = False,
) -> list[dict] | None:
    """An answer for each item, in order: {"answer", "hit_limit"}, or for one with choices {"scores", "tokens"}: the
    log-likelihood of each choice and its length; or {"unreadable": why its picture cannot be read, ...}.

    Args:
        make_chat: builds the model; not called when all answers are known.
        source: see `made_from`; its "decoding" says how answers are drawn.
        folder: where the answers are kept.
        say: what stands before the progress.
        everywhere: all processes wait for all answers, for what they are asked next depends on them.
    Returns:
        None in all processes but the first, unless `everywhere`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, own, world = _sha(source)[:12], rank(), world_size()
    keys = [item.key for item in items]
    known = _read(folder, name)
    todo = [i for i in range(own, len(items), world) if keys[i] not in known]
    if todo:
        _answer(make_chat(), [(items[i], keys[i]) for i in todo], source["decoding"], folder / f"{name}.{own}.jsonl",
                batch, say)  # fmt: skip
    if own and not everywhere:
        return None
    while any(key not in (known := _read(folder, name)) for key in keys):
        time.sleep(1)  # torchrun ends this process when another one died
    return [known[key] for key in keys]


def _read(folder: Path, name: str) -> dict[str, dict]:
    """key -> answer, of all processes that ever worked on this."""
    known = {}
    for file in sorted(folder.glob(f"{name}.*.jsonl")):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                entry = json.loads(line)
                known[entry.pop("key")] = entry
            except (ValueError, KeyError, AttributeError):
                continue  # the line that was being written when the process was killed
    return known


def _answer(chat, work: list[tuple[Item, str]], decoding: dict, file: Path, batch: int, say: str) -> None:
    work = sorted(work, key=lambda pair: bool(pair[0].choices))  # texts first: a batch is of one sort
    started, done, told = time.monotonic(), 0, 0.0
    with file.open("a+", encoding="utf-8", errors="backslashreplace") as out:
        if out.tell():
            out.write("\n")  # ends a line that was cut; an empty line is skipped
        while done < len(work):
            item, key = work[done]
            size = 1 if item.choices else batch
            chosen = [pair for pair in work[done : done + size] if pair[0].choices == item.choices]
            entries = _entries(chat, [one for one, _ in chosen], key, decoding)
            for (item, key), entry in zip(chosen, entries, strict=True):
                line = {"key": key, "id": item.record.id, "variant": item.variant, **entry}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            done += len(chosen)
            now = time.monotonic()
            if now - told >= 5 or done == len(work):
                told, left = now, (now - started) / done * (len(work) - done)
                print(f"{say}{done}/{len(work)} answers, {left:.0f} s left", flush=True)


def _entries(chat, items: Sequence[Item], key: str, decoding: dict) -> list[dict]:
    """What is kept of some items that have choices, or none. One whose picture cannot be read has no answer but a
    reason, `unreadable`, and the others are answered all the same."""
    from ..conversation.chat import ImageError, read_image

    try:
        if items[0].choices:
            return [rank_choices(chat, item.record.image, item.question, item.choices) for item in items]
        return _texts(chat, items, key, decoding)
    except ImageError:
        broken = {}
        for i, item in enumerate(items):
            try:
                read_image(item.record.image)
            except ImageError as error:
                broken[i] = {"answer": "", "hit_limit": False, "unreadable": str(error)}
        if not broken:
            raise
        good = [item for i, item in enumerate(items) if i not in broken]
        answered = iter(_entries(chat, good, key, decoding) if good else [])
        return [broken.get(i) or next(answered) for i in range(len(items))]


def _texts(chat, items: Sequence[Item], key: str, decoding: dict) -> list[dict]:
    options = dict(decoding)
    if options.get("do_sample"):  # other random numbers in each batch, the same ones in each run
        options["seed"] = (options["seed"] + int(key[:8], 16)) % 2**31
    texts = chat.answer_batch([i.record.image for i in items], [i.question for i in items], **options)
    most = options["max_new_tokens"] - 1  # counted again from the text, where a blank at an end may be lost
    return [{"answer": text, "hit_limit": len(chat.model.token_ids(text)) >= most} for text in texts]


def rank_choices(chat, image, question: str, choices: Sequence[str], rows: int = 32) -> dict:
    """How likely the model finds each choice as its whole answer, end symbol included.

    Args:
        rows: choices that are read at once.
    Returns:
        {"scores": sums of log-probabilities, "tokens": how many were summed}
    """
    import torch

    conv = chat.new_conversation()
    chat.upload_img(image, conv)
    chat.ask(question, conv)
    model, llm = chat.model, chat.model.llama_model
    ids = [model.token_ids(chat.as_text(choice) + chat.template.end_sym) for choice in choices]
    scores: list[float] = []
    with torch.no_grad():
        context = model.embed_segments(conv.segments(chat.as_text))  # (1, T, D_llm), read once for all choices
        seen = llm(inputs_embeds=context, use_cache=True, logits_to_keep=1)
        first = seen.logits[0, -1].float().log_softmax(-1)  # (V,)
        for start in range(0, len(ids), rows):
            part = ids[start : start + rows]
            length = max(map(len, part))
            table = torch.tensor([row + [0] * (length - len(row)) for row in part], device=context.device)  # (B, L)
            real = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in part], device=context.device)
            scored = first[table[:, :1]]
            if length > 1:
                cache = copy.deepcopy(seen.past_key_values)
                cache.batch_repeat_interleave(len(part))
                mask = torch.cat([real.new_ones(len(part), context.shape[1]), real[:, :-1]], dim=1)
                out = llm(inputs_embeds=model.embed_ids(table[:, :-1]).to(context.dtype), attention_mask=mask,
                          past_key_values=cache)  # fmt: skip
                rest = out.logits.float().log_softmax(-1).gather(2, table[:, 1:, None])[..., 0]
                scored = torch.cat([scored, rest], dim=1)
            scores += (scored * real).sum(1).tolist()
    return {"scores": [round(s, 4) for s in scores], "tokens": [len(row) for row in ids]}
