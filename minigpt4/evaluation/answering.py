"""Answers of a model to the items of an evaluation: in batches, kept in files as they come, shared among processes.

`answers/HASH.RANK.jsonl` holds what process RANK answered under the settings that HASH stands for. A killed evaluation
goes on behind the last answer. Each process answers every WORLD_SIZE-th item, and the first waits for all answers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from ..common.dist_utils import choose_device, is_launched, rank, training_device, world_size
from ..common.paths import resolve_path
from ..common.schema import Config
from .data import Record


@dataclass(frozen=True)
class Item:
    """One question to the model."""

    record: Record
    question: str
    variant: str = ""  # which of the suite's questions this is
    choices: tuple[str, ...] = ()  # to rank by likelihood; empty: the model answers in its own words

    @property
    def key(self) -> str:
        """Stands for the picture and the question, whatever else is in the evaluation."""
        stat = self.record.image.stat()
        return digest([self.record.id, stat.st_size, stat.st_mtime_ns, self.question, self.choices])[:20]


def digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def made_from(config: Config, decoding: dict) -> dict:
    """What answers depend on besides their items: the model's keys, the files they name, how answers are decoded."""
    model = asdict(config.model)
    for f in fields(config.model):
        if f.metadata.get("path") and isinstance(model[f.name], str):
            place = Path(resolve_path(model[f.name]))
            files = [p for p in (sorted(place.iterdir()) if place.is_dir() else [place]) if p.is_file()]
            stamps = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
            model[f.name] = stamps or str(place)
    processors = {name: asdict(dataset.vis_processor) for name, dataset in config.datasets.items()}
    return {"model": model, "processors": processors, "decoding": decoding}


def chat_for(config: Config, device: str):
    """The config's model on `--device`, ready to answer; under torchrun each process takes its own GPU."""
    from ..serve import build_chat

    chosen = training_device(device) if is_launched() else choose_device(device, f"--device {device}")
    return build_chat(config, chosen)


def answer_all(
    make_chat: Callable, items: Sequence[Item], source: dict, folder: Path, batch: int, say: str = "",
    everywhere: bool = False,
) -> list[dict] | None:  # fmt: skip
    """An answer for each item, in order: {"answer", "hit_limit"}, or for one with choices {"scores"}, the
    log-likelihood of each; or {"unreadable": why its picture cannot be read, ...}.

    Args:
        make_chat: builds the model; not called when all answers are known.
        source: see `made_from`; its "decoding" says how answers are decoded.
        folder: where the answers are kept.
        say: stands before the progress.
        everywhere: all processes wait for all answers, for what they are asked next depends on them.
    Returns:
        None in all processes but the first, unless `everywhere`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, keys = digest(source)[:12], [item.key for item in items]
    known = read_kept(folder.glob(f"{name}.*.jsonl"))
    todo = [i for i in range(rank(), len(items), world_size()) if keys[i] not in known]
    if todo:
        chat, texts = make_chat(), [i for i in todo if not items[i].choices]
        batches = [texts[n : n + batch] for n in range(0, len(texts), batch)]
        batches += [[i] for i in todo if items[i].choices]
        with tqdm(total=len(todo), desc=say, unit="answer", mininterval=5) as bar:
            for places in batches:
                seed = int(keys[places[0]][:8], 16)  # other random numbers in each batch
                entries = _entries(chat, [items[i] for i in places], source["decoding"], seed)
                entries = [{"key": keys[i], "id": items[i].record.id, "variant": items[i].variant, **entry}
                           for i, entry in zip(places, entries, strict=True)]  # fmt: skip
                keep(entries, folder / f"{name}.{rank()}.jsonl")
                bar.update(len(places))
    if rank() and not everywhere:
        return None
    while any(key not in (known := read_kept(folder.glob(f"{name}.*.jsonl"))) for key in keys):
        time.sleep(1)  # torchrun ends this process when another one died
    return [known[key] for key in keys]


def read_kept(files: Iterable[Path]) -> dict[str, dict]:
    """key -> entry, of JSON lines that `keep` wrote. A line that was cut when its process was killed is skipped."""
    known = {}
    for file in sorted(files):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):  # texts may hold other line breaks
            with suppress(ValueError):
                entry = json.loads(line)
                known[entry.pop("key")] = entry
    return known


def keep(entries: Iterable[dict], file: Path) -> None:
    with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
        out.write("\n" if out.tell() else "")  # ends a line that was cut; an empty line is skipped
        out.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _entries(chat, items: Sequence[Item], decoding: dict, seed: int) -> list[dict]:
    """What is kept of a batch: of one item with choices, or of several without."""
    from ..conversation.chat import ImageError

    options = {**decoding, "seed": (decoding["seed"] + seed) % 2**31} if decoding.get("do_sample") else decoding
    try:
        if items[0].choices:
            return [rank_choices(chat, items[0].record.image, items[0].question, items[0].choices)]
        texts = chat.answer_batch([i.record.image for i in items], [i.question for i in items], **options)
    except ImageError as error:
        if len(items) == 1:
            return [{"answer": "", "hit_limit": False, "unreadable": str(error)}]
        return [entry for item in items for entry in _entries(chat, [item], decoding, seed)]
    most = options["max_new_tokens"] - 1  # counted again from the text, where a blank at an end may be lost
    return [{"answer": text, "hit_limit": len(chat.model.token_ids(text)) >= most} for text in texts]


def rank_choices(chat, image, question: str, choices: Sequence[str], rows: int = 32) -> dict:
    """How likely the model finds each choice as its whole answer, end symbol included: {"scores": the sums of their
    log-probabilities}. It reads `rows` choices at once."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

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
            part = [torch.tensor(row, device=context.device) for row in ids[start : start + rows]]
            table = pad_sequence(part, batch_first=True)  # (B, L)
            real = pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
            cache = copy.deepcopy(seen.past_key_values)
            cache.batch_repeat_interleave(len(part))
            mask = torch.cat([real.new_ones(len(part), context.shape[1]), real[:, :-1]], dim=1)
            embeds = model.embed_ids(table[:, :-1]).to(context.dtype)
            logits = llm(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache).logits  # (B, L - 1, V)
            rest = logits.float().log_softmax(-1).gather(2, table[:, 1:, None])[..., 0]
            scores += (torch.cat([first[table[:, :1]], rest], dim=1) * real).sum(1).tolist()
    return {"scores": [round(s, 4) for s in scores]}
