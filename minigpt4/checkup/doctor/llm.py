"""The doctor on `model.llama_model`: is the folder whole, is it one model, and is it no delta?

Of each shard only the header is read, and a few norms. The tokenizer and the way of talking: talk.py.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from ...common.checkpoint import HARMLESS
from ...common.errors import CheckpointError, some
from ...common.identify import DOWNLOAD_AGAIN, NO_WEIGHTS, FileFacts, amount, gigabytes, identify
from ...models.llm import create_llm
from ...models.llm_checks import WEIGHT_FILES, no_weights, quantized_by, read_json
from ...tools.vicuna.llama_meta import MODEL_SIZES
from ...tools.vicuna.prepare import DELTA_NORM
from .page import LOOK, OK, WRONG, Row

KEY = "model.llama_model"
VICUNA = "make Vicuna v0 from LLaMA and its delta with `minigpt4 prepare-vicuna`; PrepareVicuna.md says how"


@dataclass
class LlmFolder:
    """What is known of the folder.

    Args:
        config: config.json.
        files: the weight files that transformers would read, identified.
        tensors: name -> tensor (shape and dtype), over all files.
        rows: what is to be said about it.
        mixed: config.json and the weights, or the weights themselves, are of different models: no size is sure.
        delta: it looks like a delta that was not added.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    files: list[FileFacts] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    mixed: bool = False
    delta: bool = False

    @property
    def width(self) -> int | None:
        """D_llm: of the embedding that is there, else what config.json says."""
        return self._size(1, "hidden_size")

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embedding."""
        return self._size(0, "vocab_size")

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self.tensors.values())

    def _size(self, axis: int, said: str) -> int | None:
        embeddings = (t for n, t in self.tensors.items() if n.endswith("embed_tokens.weight") and t.ndim == 2)
        embedding = next(embeddings, None)
        if self.mixed:
            return None
        return embedding.shape[axis] if embedding is not None else self.config.get(said)

    def say(self, mark: str, text: str, do: str = "", name: str = KEY) -> None:
        self.rows.append(Row("Files", mark, name, text, do))


def look_at_llm(path: Path) -> LlmFolder:
    """Everything but the tokenizer. Never raises for what the folder may hold."""
    folder = LlmFolder(path)
    if path.is_file():
        facts = identify(path)
        if facts.kind == "gguf":
            _look_at_gguf(folder, facts)
            return folder
        do = f"write the folder it lies in: {path.parent}" if facts.kind == "llm" else _belongs(facts)
        folder.say(WRONG, f"{path}\n{facts.describe()}; a folder in transformers' format is wanted", do)
        return folder
    if not (path / "config.json").is_file():
        folder.say(WRONG, f"{path}\nhas no config.json: {_without_config(path)}", _what_instead(path))
        return folder
    config, problem = read_json(path / "config.json")
    if problem:
        folder.say(WRONG, f"{path / 'config.json'} {problem}", "fetch it again")
        return folder
    folder.config = config
    if how := quantized_by(path):
        do = "write the folder of the same LLM in 16 or 32 bit, with model.low_resource: 8bit or 4bit"
        folder.say(WRONG, f"{path}\nits weights are quantized by {how}, which is not supported", do)
        return folder
    if _find_weights(folder):
        _compare_with_config(folder)
        _look_for_delta(folder)
    if not folder.rows:
        folder.say(OK, f"{path}\n{_describe(folder)}")
    return folder


def _look_at_gguf(folder: LlmFolder, facts: FileFacts) -> None:
    path = folder.path
    try:
        folder.config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).to_dict()
    except Exception as error:  # the gguf package and transformers raise any kind
        folder.say(WRONG, f"{path}\n{facts.describe()}: its head cannot be read: {error}", DOWNLOAD_AGAIN["damaged"])
        return
    c = folder.config
    sizes = f"{c.get('num_hidden_layers')} layers, width {c.get('hidden_size')}, vocabulary {c.get('vocab_size')}"
    folder.say(OK, f"{path}\n{facts.describe()}: {c.get('model_type')}: {sizes}")


def _describe(folder: LlmFolder) -> str:
    c = folder.config
    size = MODEL_SIZES.get(folder.width, "")
    layers = c.get("num_hidden_layers", "?")
    kinds = "+".join(sorted({str(t.dtype).removeprefix("torch.") for t in folder.tensors.values()}))
    files = f"{len(folder.files)} file{'s' if len(folder.files) > 1 else ''}"
    return (
        f"{c.get('model_type', 'an LLM')} {size}".strip() + f": {layers} layers, width {folder.width:,}, vocabulary "
        f"{folder.vocabulary:,}; {files}, {amount(folder.parameters)} numbers, {kinds}, "
        f"{gigabytes(sum(f.bytes for f in folder.files))}"
    )


def _belongs(facts: FileFacts) -> str:
    return DOWNLOAD_AGAIN.get(facts.kind, "write the folder that holds config.json and the weights of the LLM")


def _without_config(path: Path) -> str:
    if (path / "params.json").is_file() or any(path.glob("consolidated.*.pth")):
        return "LLaMA in Meta's own form"
    if (path / "adapter_config.json").is_file():
        return "a LoRA adapter"
    if any(path.glob("*.gguf")):
        return "GGUF files"
    return "the folder is empty" if not any(path.iterdir()) else "not the folder of an LLM in transformers' format"


def _what_instead(path: Path) -> str:
    if (path / "params.json").is_file() or any(path.glob("consolidated.*.pth")):
        return VICUNA
    below = sorted(p.parent for p in path.glob("*/config.json"))
    return f"write {below[0]}" if below else "write the folder that holds config.json and the weights of the LLM"


def _find_weights(folder: LlmFolder) -> bool:
    """Fill `files` and `tensors`; False when they are not whole."""
    path = folder.path
    found = next((name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        folder.say(WRONG, f"{path}\n{no_weights(path)}", "fetch the whole folder again")
        return False
    if not found.endswith("index.json"):
        return _read_shards(folder, [found])
    index, problem = read_json(path / found)
    placed = index.get("weight_map")
    if problem or not isinstance(placed, dict) or not placed:
        folder.say(WRONG, f"{path / found} {problem or 'has no weight_map'}", "fetch it again")
        return False
    names = sorted(set(map(str, placed.values())))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        folder.say(
            WRONG, f"{path}\n{len(missing)} of the {len(names)} files its index names are missing: {some(missing)}",
            "fetch the missing files",
        )  # fmt: skip
    whole = _read_shards(folder, [name for name in names if name not in missing]) and not missing
    astray = [n for n, file in placed.items() if n not in folder.tensors and not HARMLESS.search(n)]
    if whole and astray:
        folder.say(
            WRONG, f"{path}\n{len(astray)} tensors of the index are in no file: {some(astray)}: index and files are of "
            "different downloads", "fetch the whole folder again",
        )  # fmt: skip
    return whole and not astray


def _read_shards(folder: LlmFolder, names: list[str]) -> bool:
    """Identify each; a row for those that are no weights, one for all of a kind."""
    folder.files = [identify(folder.path / name) for name in names]
    broken = Counter((f.kind, f.note if f.kind not in ("lfs", "truncated") else "") for f in folder.files
                     if f.kind in NO_WEIGHTS)  # fmt: skip
    for (kind, _), count in broken.items():
        one = next(f for f in folder.files if f.kind == kind)
        which = one.path.name if count == 1 else f"{count} of {len(names)} weight files, e.g. {one.path.name},"
        are = "is" if count == 1 else "are each"
        folder.say(WRONG, f"{folder.path}\n{which} {are} {one.describe()}", DOWNLOAD_AGAIN[kind])
    others = [f for f in folder.files if f.kind not in NO_WEIGHTS and f.kind in ("eva_vit", "qformer", "minigpt4",
              "llm_meta", "blip2_transformers", "adapter", "resume")]  # fmt: skip
    for facts in others:
        folder.say(WRONG, f"{facts.path}\n{facts.describe()}; not the weights of an LLM", "fetch the right file")
    for facts in folder.files:
        folder.tensors |= facts.tensors
    return not broken and not others


def _compare_with_config(folder: LlmFolder) -> None:
    """Names and shapes against the model that config.json describes, built on the meta device."""
    try:
        llm = create_llm(str(folder.path), torch.float16)
    except (CheckpointError, Exception) as error:  # remote code, sizes that do not divide: transformers raises any kind
        folder.say(WRONG, f"{folder.path / 'config.json'}: no LLM can be built from it: {error}", "fetch it again")
        return
    wanted = llm.state_dict()
    tied = set(getattr(llm, "_tied_weights_keys", None) or ()) if llm.config.tie_word_embeddings else set()
    missing = sorted(n for n in wanted if n not in folder.tensors and n not in tied)
    other = {n: t for n, t in folder.tensors.items() if n in wanted and t.shape != wanted[n].shape}
    extra = sorted(n for n in folder.tensors if n not in wanted and n not in tied and not HARMLESS.search(n))
    strict = folder.config.get("model_type") == "llama"  # of other models transformers may translate names as it loads
    if other:
        folder.mixed = True
        folder.say(WRONG, f"{folder.path}\n{_other_shapes(folder, other, wanted)}", _mixed_hint(other))
    elif missing:
        folder.say(
            WRONG if strict else LOOK, f"{folder.path}\n{len(missing)} of {len(wanted)} tensors are missing: "
            f"{some(missing)}", "fetch the whole folder again",
        )  # fmt: skip
    elif extra:
        more = "its config.json describes a smaller model" if any(".layers." in n for n in extra) else "not used"
        folder.say(
            WRONG if ".layers." in extra[0] else LOOK, f"{folder.path}\n{_describe(folder)}\n{len(extra)} tensors more "
            f"than config.json's model has ({some(extra, 2)}): {more}", "is config.json of this model?",
        )  # fmt: skip


def _other_shapes(folder: LlmFolder, other: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    name = min(other, key=lambda n: (not n.endswith("embed_tokens.weight"), n))
    held, said = tuple(other[name].shape), tuple(wanted[name].shape)
    by_file = Counter(f.path.name for f in folder.files for n in f.tensors if n in other)
    where = f" in {some(by_file)}" if len(by_file) < len(folder.files) else ""
    return (
        f"{len(other)} of {len(wanted)} tensors{where} have other shapes than config.json says, e.g. {name} "
        f"is {held}, by config.json {said}"
    )


def _mixed_hint(other: dict[str, Tensor]) -> str:
    if all(n.endswith(("embed_tokens.weight", "lm_head.weight")) for n in other):
        return "config.json's vocab_size is another model's: fetch config.json again, from where the weights came"
    return "files of two models are mixed (7B and 13B?): fetch all of one, config.json too, into a folder of its own"


def _look_for_delta(folder: LlmFolder) -> None:
    """A delta is a difference: its norms' weights are near 0, a LLaMA's final norm averages 1 and more."""
    holder = next((f for f in folder.files if "model.norm.weight" in f.tensors), None)
    if holder is None or folder.config.get("model_type") != "llama":
        return
    size = float(holder.value("model.norm.weight").float().abs().mean())
    if not size < float("inf"):
        folder.say(WRONG, f"{holder.path}: model.norm.weight holds NaN or infinity: damaged", "fetch it again")
    elif size == 0 and _only_zeros(folder):
        folder.say(WRONG, f"{folder.path}\n{_describe(folder)}\nholds zeros alone: a download that was not finished",
                   DOWNLOAD_AGAIN["truncated"])  # fmt: skip
    elif size < DELTA_NORM:
        folder.delta = True
        folder.say(
            WRONG, f"{folder.path}\n{_describe(folder)}\nlooks like a delta that was not added to LLaMA: the final "
            f"norm's weights average {size:.4f}, in a whole LLaMA 1 and more", VICUNA,
        )  # fmt: skip


def _only_zeros(folder: LlmFolder) -> bool:
    """Of the first layer's matrices; a delta has numbers there."""
    found = ((f, n) for f in folder.files for n in f.tensors if n.startswith("model.layers.0.") and "proj" in n)
    return not any(f.value(name)[0].any() for f, name in found)
