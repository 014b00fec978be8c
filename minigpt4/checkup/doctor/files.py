"""The doctor on the files of a config: what each is, and whether it fits the model that the config describes.

"Fits" is decided by the model's own loaders, run on the meta device with the shapes of the file's header.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig

from ...common.download import WEB, cached_path
from ...common.errors import CheckpointError, UserError
from ...common.identify import DOWNLOAD_AGAIN, KINDS, NO_WEIGHTS, FileFacts, identify
from ...common.paths import REMOTE, expand_shards, resolve_path
from ...common.registry import CONVERSATIONS, DATASETS
from ...common.schema import Config, ModelConfig
from ...models.mini_gpt4 import MiniGPT4
from ...tools.vicuna.llama_meta import MODEL_SIZES
from .llm import KEY as LLM_KEY
from .llm import LlmFolder, look_at_llm
from .page import LOOK, OK, WRONG, Row

META = torch.device("meta")
MANY_STEPS = 10_000  # stage 1 takes 20,000, stage 2 1,000 at most
# Which key wants what, and the published file of it.
WANTED = {
    "model.vit_ckpt": ("the weights of a vision tower", "eva_vit_g.pth"),
    "model.q_former_model": ("a Q-Former with query_tokens and ln_vision", "blip2_pretrained_flant5xxl.pth"),
    "model.ckpt": ("a MiniGPT-4 checkpoint (llama_proj)", "checkpoint_N.pth of a run, or the published checkpoint"),
}
BELONGS = {
    "eva_vit": "model.vit_ckpt", "vit": "model.vit_ckpt", "vision": "model.vit_ckpt",
    "qformer": "model.q_former_model", "minigpt4": "model.ckpt", "llm": LLM_KEY,
}  # fmt: skip


@dataclass
class Files:
    """What was found: rows to print, and for other checks the identified files and the LLM's folder."""

    rows: list[Row] = field(default_factory=list)
    known: dict[str, FileFacts] = field(default_factory=dict)
    llm: LlmFolder | None = None
    to_fetch: bool = False  # a URL whose file is not in the cache yet

    def say(self, mark: str, key: str, text: str, do: str = "") -> None:
        self.rows.append(Row("Files", mark, key, text, do))


def look_at_files(config: Config, mode: str, problems: dict[str, str]) -> Files:
    """Every file of the config.

    Args:
        mode: chat or train: what the config is for.
        problems: key -> what the config's own checks say; of a key in here nothing more is asked.
    """
    files, model = Files(), config.model
    paths = {"model.vit_ckpt": model.vit_ckpt, "model.q_former_model": model.q_former_model, "model.ckpt": model.ckpt}
    for key, path in paths.items():
        if path and key not in problems and (local := _local(path)):
            files.known[key] = identify(local)
    if LLM_KEY not in problems and (local := _local(model.llama_model)):
        files.llm = look_at_llm(local)
    built, why = _model_of_shapes(model, files)
    for key, path in {**dict(list(paths.items())[:2]), LLM_KEY: model.llama_model, "model.ckpt": model.ckpt}.items():
        if key in problems:
            files.say(WRONG, key, problems[key])
        elif path is None:
            files.say(OK, key, _not_set(key, model, mode))
        elif _local(path) is None:
            files.say(LOOK, key, f"{path}\nnot fetched yet: that happens at first use. Then ask the doctor again")
            files.to_fetch = True
        elif key == LLM_KEY:
            files.rows += files.llm.rows
        else:
            _look_at(key, path, files, built, config, mode)
    if built is None and why:
        files.say(WRONG, "model", f"cannot be built: {why}")
    if mode == "train":
        _look_at_data(config, files, problems)
    return files


def _local(path: str) -> Path | None:
    """Where the file lies; None for a URL that has not been fetched."""
    if not path.startswith(WEB):
        return Path(resolve_path(path))
    cached = cached_path(path)
    return cached if cached.exists() else None


def _not_set(key: str, model: ModelConfig, mode: str) -> str:
    if key == "model.ckpt":
        return "not set: the projection starts afresh" if mode == "train" else "not set"
    if key == "model.q_former_model" and not model.has_qformer:
        return "not set: there is no Q-Former, and ln_vision stays plain"
    return "not set: trained from scratch"


def _model_of_shapes(model: ModelConfig, files: Files) -> tuple[MiniGPT4 | None, str]:
    """The config's model on the meta device. The LLM's width is what counts of it, unless there is LoRA in it."""
    width = files.llm.width if files.llm else None
    if not width and "model.ckpt" in files.known:
        width = files.known["model.ckpt"].sizes.get("to LLM width")
    try:
        if model.lora and files.llm and files.llm.config:
            llm = AutoConfig.from_pretrained(files.llm.path, local_files_only=True)
        else:
            llm = LlamaConfig(vocab_size=8, hidden_size=width or 8, intermediate_size=8, num_hidden_layers=1,
                              num_attention_heads=1)  # fmt: skip
            model = replace(model, lora=None)
        return MiniGPT4(replace(model, prompt_path=None), META, llm), ""
    except (UserError, ValueError, RuntimeError, OSError) as error:
        return None, str(error).splitlines()[0]


# -- the weight files -----------------------------------------------------------------------------------------------


def _look_at(key: str, path: str, files: Files, built: MiniGPT4 | None, config: Config, mode: str) -> None:
    facts = files.known[key]
    same = next((k for k, f in files.known.items() if k != key and f.path == facts.path and k in _told(files)), None)
    text = f"{path}\n" + (f"the same file as {same}" if same else facts.describe())
    if facts.kind in NO_WEIGHTS:
        files.say(WRONG, key, text, DOWNLOAD_AGAIN[facts.kind])
        return
    misfit = _misfit(key, facts, built) if built else ""
    if misfit:
        files.say(
            WRONG, key, f"{text}\n{_explain(key, facts, files, config.model) or misfit}", _instead(key, facts, files)
        )
        return
    if key == "model.ckpt":
        mark, more, do = _trained_for(facts, config, mode)
        files.say(mark, key, f"{text}\n{more}".rstrip(), do)
    else:
        files.say(OK, key, text)


def _told(files: Files) -> set[str]:
    return {row.name for row in files.rows}


def _misfit(key: str, facts: FileFacts, built: MiniGPT4) -> str:
    """What the loader says of it; empty when it fits."""
    load: dict[str, Callable[[], Any]] = {
        "model.vit_ckpt": lambda: built.load_vit(facts.tensors, META),
        "model.q_former_model": lambda: built.load_qformer(facts.tensors, META),
        "model.ckpt": lambda: built.load_trained(str(facts.path), facts.tensors),
    }
    try:
        load[key]()
    except (CheckpointError, RuntimeError, ValueError, IndexError) as error:  # odd shapes stop the interpolation
        lines = [line.strip() for line in str(error).splitlines()]
        return "does not fit: " + "; ".join(line[:150] + "..." * (len(line) > 150) for line in lines[1:] or lines)
    return ""


def _explain(key: str, facts: FileFacts, files: Files, model: ModelConfig) -> str:
    """The misfit in words, where its cause is known."""
    wanted, _ = WANTED[key]
    sizes = facts.sizes
    if key == "model.q_former_model" and facts.kind == "minigpt4" and "queries" not in sizes:
        return f"holds a projection alone, not {wanted}"
    if BELONGS.get(facts.kind) != key and not (key == "model.q_former_model" and facts.kind == "minigpt4"):
        return f"not {wanted}"
    if key == "model.ckpt":
        width = files.llm.width if files.llm else None
        if width and "to LLM width" in sizes and sizes["to LLM width"] != width:
            return (f"made for an LLM that is {_llm_size(sizes['to LLM width'])} wide; the one of {LLM_KEY} is "
                    f"{_llm_size(width)}")  # fmt: skip
    said = {"queries": ("num_query_token", model.num_query_token),
            "Q-Former width": ("qformer_kwargs.hidden_size", model.qformer_kwargs.hidden_size),
            "from width": ("qformer_kwargs.hidden_size", model.qformer_kwargs.hidden_size)}  # fmt: skip
    differ = [
        f"{what} {sizes[what]}, but model.{name} is {value}"
        for what, (name, value) in said.items()
        if what in sizes and sizes[what] != value and (model.has_qformer or what != "from width")
    ]
    return "; ".join(differ)


def _llm_size(width: int) -> str:
    return f"{width:,}" + (f" ({MODEL_SIZES[width]})" if width in MODEL_SIZES else "")


def _instead(key: str, facts: FileFacts, files: Files) -> str:
    """What to write or do when a file does not fit its key."""
    _, example = WANTED[key]
    home = BELONGS.get(facts.kind)
    if facts.kind == "resume":
        beside = facts.path.with_name(re.sub(r"\.resume\.pt$", ".pth", facts.path.name))
        return f"write the checkpoint beside it: {beside}" if beside.is_file() else f"write {example}"
    if home == key:
        if key == "model.ckpt":
            return "take the checkpoint and the LLM of one size, with the sizes of the config it was trained with"
        return f"write the sizes of this file into the config, or the path of another {example}"
    other = files.known.get(home) if home else None
    if other and BELONGS.get(other.kind) == key:
        return f"exchange the paths of {key} and {home}"
    return f"write the path of {example}" + (f"; this one belongs in {home}" if home else "")


def _trained_for(facts: FileFacts, config: Config, mode: str) -> tuple[str, str, str]:
    """(mark, text, do): does the checkpoint's own training suit what it is wanted for?"""
    stage, why = stage_of(facts.facts)
    by_name = _stage_in(facts.path.name) if stage is None else None
    if by_name:
        stage, why = by_name, f"its file name says so; {why}"
    at = ", ".join(f"{k} {facts.facts[k]}" for k in ("epoch", "step") if isinstance(facts.facts.get(k), int))
    at = f" ({at})" if at else ""
    if stage is None:
        return OK, f"stage 1 or 2 cannot be told{at}: {why}", ""
    trained = None if by_name else facts.facts["config"].get("model")
    asked = trained.get("prompt_template") if isinstance(trained, dict) else None
    name = config.model.conv_template
    if stage == 2 and mode == "chat" and asked and asked != "{}" and name in CONVERSATIONS.names():
        opens = CONVERSATIONS.get(name).assistant.strip()
        if opens not in asked:
            return (WRONG, f"stage 2{at}, trained with prompts like {asked!r}; the chat ({name}) opens an answer with "
                    f"{opens!r}", "write the conv_template it was trained for")  # fmt: skip
    if stage == 1 and mode == "chat":
        text = f"a stage-1 checkpoint{at}: {why}. It continues captions; it does not hold a conversation"
        return LOOK if by_name else WRONG, text, "write a checkpoint of stage 2"
    return OK, f"stage {stage}{at}: {why}", ""


def stage_of(facts: dict[str, Any]) -> tuple[int | None, str]:
    """(1, 2 or None where it cannot be told; why) of the training that wrote a checkpoint.

    Told by the config inside it: stage 1 has no instructions and closes a caption with a newline, stage 2 wraps
    descriptions in the conversation template.
    """
    config = facts.get("config")
    if not isinstance(config, dict):
        return None, "the file holds no config of its training"
    model, run = (config.get(part) if isinstance(config.get(part), dict) else {} for part in ("model", "run"))
    datasets = config.get("datasets") if isinstance(config.get("datasets"), dict) else {}
    asked = model.get("prompt_path") or any(isinstance(d, dict) and d.get("prompt_path") for d in datasets.values())
    if asked:
        return 2, f"trained with the instructions of {asked if isinstance(asked, str) else 'its datasets'}"
    if "cc_sbu_align" in datasets:
        return 2, "trained on cc_sbu_align"
    if model or datasets:
        on = f" on {' and '.join(datasets)}" if datasets else ""
        return 1, f"trained{on} without instructions, end_sym {model.get('end_sym') or chr(10)!r}"
    if stage := _stage_in(str(run.get("output_dir", ""))):
        return stage, f"its run wrote to {run['output_dir']}"
    steps = [run.get("max_epoch"), run.get("iters_per_epoch")]
    if all(isinstance(n, int) for n in steps) and steps[0] * steps[1] >= MANY_STEPS:
        return 1, f"a run of {steps[0] * steps[1]:,} steps"
    return None, "the config inside it names neither data nor instructions"


def _stage_in(name: str) -> int | None:
    """The stage that the name of a folder or file says."""
    words = ((1, "stage1"), (1, "pretrain"), (2, "stage2"), (2, "finetune"))
    return next((stage for stage, word in words if word in name.lower()), None)


# -- data -----------------------------------------------------------------------------------------------------------


def _look_at_data(config: Config, files: Files, problems: dict[str, str]) -> None:
    for name, dataset in config.datasets.items():
        key = f"datasets.{name}.build_info.storage"
        wrong = {k: text for k, text in problems.items() if k.startswith(f"datasets.{name}.")}
        for k, text in wrong.items():
            files.say(WRONG, k, text)
        builder = dataset.builder or name
        if wrong or builder not in DATASETS.names():
            continue
        storage = dataset.build_info.storage
        try:
            source = DATASETS.get(builder)(dataset, None, str)
        except (UserError, OSError, ValueError) as error:
            files.say(WRONG, key, str(error))
            continue
        if pairs := getattr(source, "pairs", None):
            image = Path(pairs[0][0])
            there = "" if image.is_file() else f"; the first, {image}, is not there"
            files.say(WRONG if there else OK, key, f"{storage}\n{len(pairs):,} images with texts{there}",
                      "see dataset/README_2_STAGE.md" if there else "")  # fmt: skip
        else:
            _look_at_shards(key, storage, files)


def _look_at_shards(key: str, storage: Any, files: Files) -> None:
    shards = [s for s in expand_shards(storage) if not s.startswith(REMOTE)]
    odd = [facts for s in {*shards[:1], *shards[-1:]} if (facts := identify(s)).kind not in ("archive", "missing")]
    if odd:
        files.say(WRONG, key, f"{odd[0].path}\nis {KINDS[odd[0].kind]}: no tar", "make the shards again")
    else:
        files.say(OK, key, f"{storage}\n{len(shards):,} shard{'s' if len(shards) != 1 else ''}")
