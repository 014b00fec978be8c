"""What the checks share: facts about the config's files and this machine, each worked out when a check first asks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...common.checkpoint import HARMLESS, load_exact, named_tensors
from ...common.dist_utils import choose_device
from ...common.download import WEB, cached_path
from ...common.errors import CheckpointError, UserError
from ...common.identify import FileFacts, identify
from ...common.paths import resolve_path
from ...common.precision import Precision, resolve_precision
from ...common.schema import Config
from ...conversation.chat_template import conversation_of
from ...conversation.prompts import Conversation
from ...models.llm import create_llm, load_tokenizer
from ...models.llm_checks import weight_files
from ...models.llm_loading import bits_of, quiet_transformers, stored_dtype
from ...models.mini_gpt4 import MiniGPT4
from ...models.shapes import META, MiniGPT4Shapes
from .page import WRONG, Finding

LLM = "model.llama_model"
WEIGHTS = ("model.vit_ckpt", "model.q_former_model", "model.ckpt")
FAULTS = (UserError, OSError, ValueError, RuntimeError)  # of a file that is read


def fact(work_out: Callable[["Context"], Any]) -> cached_property:
    """A property that is worked out once. Where that fails it is None, and `context.errors[name]` says why."""

    def get(context: "Context") -> Any:
        try:
            return work_out(context)
        except FAULTS as error:
            context.errors[work_out.__name__] = error
            return None

    return cached_property(get)


@dataclass(frozen=True)
class LlmFacts:
    """The LLM that model.llama_model names.

    Args:
        model: what config.json describes, on the meta device.
        files: its weight files, or the GGUF file.
        misfit: where the weights differ from `model`; empty when they agree.
    """

    path: Path
    model: PreTrainedModel
    files: list[FileFacts]
    misfit: str

    @property
    def surely_differs(self) -> bool:
        """Whether the misfit is a fault: of other models than LLaMA, transformers may translate names as it loads."""
        return bool(self.misfit) and (self.model.config.model_type == "llama" or "other shape" in self.misfit)

    @property
    def parameters(self) -> int:
        """How many numbers the weight files hold; 0 for a GGUF file, whose tensors are not read."""
        return sum(file.parameters for file in self.files)


class Context:
    """A config, what it is for, and every fact about it that several checks need.

    Args:
        mode: chat or train.
        problems: key -> what the config's own checks say. No fact is worked out from such a key.
        device_name: the value of --device.
    """

    def __init__(self, config: Config, mode: str, problems: dict[str, str], device_name: str | None = None):
        self.config, self.mode, self.problems, self.device_name = config, mode, problems, device_name
        self.errors: dict[str, Exception] = {}
        self.findings: list[Finding] = []

    def need(self, name: str) -> Any:
        """A fact by its name. Raises the error that it could not be worked out for."""
        value = getattr(self, name)
        if name in self.errors:
            raise self.errors[name]
        return value

    def local(self, key: str) -> Path | None:
        """Where the file of a key of `model` is; None when the key is null or has a problem, or its URL was not
        fetched."""
        path = getattr(self.config.model, key.removeprefix("model."))
        if not path or key in self.problems:
            return None
        if not path.startswith(WEB):
            return Path(resolve_path(path))
        return cached_path(path) if cached_path(path).exists() else None

    def to_fetch(self, key: str) -> bool:
        """Whether the file of a key is at a URL and not in the cache yet."""
        path = getattr(self.config.model, key.removeprefix("model."))
        return bool(path) and key not in self.problems and self.local(key) is None

    @fact
    def files(self) -> dict[str, FileFacts]:
        """The weight files beside the LLM, identified."""
        return {key: identify(path) for key in WEIGHTS if (path := self.local(key))}

    @fact
    def llm(self) -> LlmFacts | None:
        path = self.local(LLM)
        if path is None:
            return None
        model = create_llm(str(path), torch.float16)
        if path.suffix == ".gguf":
            return LlmFacts(path, model, [identify(path)], "")
        files = weight_files(path)
        return LlmFacts(path, model, files, _misfit(path, model, files))

    @property
    def llm_size(self) -> tuple[int | None, int | None]:
        """(rows, D_llm) of the LLM's embedding; (None, None) when they are not sure."""
        sure = self.llm and not self.llm.surely_differs
        return tuple(self.llm.model.get_input_embeddings().weight.shape) if sure else (None, None)

    @fact
    def model(self) -> MiniGPT4 | None:
        """The config's model without memory, with the LLM's own config.json and tokenizer."""
        return MiniGPT4Shapes(self.config.model) if self.local(LLM) else None

    @fact
    def shapes(self) -> MiniGPT4:
        """The model whose loaders say whether a file fits. An LLM that is not sure is replaced by a small one."""
        if self.model is not None and self.llm_size[1]:
            return self.model
        ckpt = self.files.get("model.ckpt")
        width = (ckpt and ckpt.llm_width) or self.llm_size[1] or 8
        one = {"num_hidden_layers": 1, "num_attention_heads": 1}
        stand_in = LlamaConfig(vocab_size=8, hidden_size=width, intermediate_size=8, **one)
        return MiniGPT4Shapes(replace(self.config.model, prompt_path=None, lora=None), stand_in)

    @fact
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        path = self.local(LLM)
        with quiet_transformers():
            return path and load_tokenizer(str(path), self.config.model.pad_token)

    @fact
    def template(self) -> Conversation | None:
        """The template that conv_template means."""
        return self.tokenizer and conversation_of(self.config.model.conv_template, self.tokenizer)

    @fact
    def device(self) -> torch.device:
        key = "run.device=" if self.mode == "train" and not self.device_name else "--device "
        name = self.config.run.device if key.startswith("run") else self.device_name
        return choose_device(name, f"{key}{name}", f"{key}cpu")

    @fact
    def precision(self) -> Precision | None:
        """What a training run or a chat computes in."""
        stored = stored_dtype(str(self.llm.path)) if self.llm else None
        run = self.config.run if self.mode == "train" else None
        return self.device and resolve_precision(self.config.model, self.device, run, stored)

    @fact
    def memory(self) -> tuple[float, int, int] | None:
        """Bytes: (that the weights take, free on the device, in all on it); None where they are not known."""
        if not self.device or not self.precision or not self.llm or not self.llm.parameters:
            return None
        numbers = {key: file.parameters for key, file in self.files.items()}
        bits = bits_of(self.config.model.low_resource) or self.precision.llm.itemsize * 8
        need = self.llm.parameters * bits / 8 + numbers.get("model.q_former_model", 0) * 4
        need += numbers.get("model.vit_ckpt", 0) * self.precision.vit.itemsize
        if self.device.type == "cuda":
            return need, *torch.cuda.mem_get_info(self.device)
        memory = psutil.virtual_memory()
        return need, memory.available, memory.total

    @property
    def no_smoke(self) -> str:
        """Why a smoke generation would make no sense, given the findings; empty when it can be tried."""
        if any(finding.mark == WRONG for finding in self.findings):
            return "first put right what is wrong"
        if any(map(self.to_fetch, (*WEIGHTS, LLM))):
            return "a file is not fetched yet"
        need, free, _ = self.memory or (0, 0, 0)
        return "too little memory" if need > free and not self.config.model.device_map else ""


def _misfit(folder: Path, model: PreTrainedModel, files: list[FileFacts]) -> str:
    """How the weights differ from the model of config.json, by names and shapes."""
    targets = named_tensors(model)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    rules = {"ignore": lambda name: HARMLESS.search(name) or name in tied, "device": META}
    try:
        for file in files:  # one by one, so that the message names the file
            load_exact(targets, file.tensors, file.path, required=set(), **rules)
        whole = {name: tensor for file in files for name, tensor in file.tensors.items()}
        load_exact(targets, whole, folder, required=set(targets) - tied, **rules)
    except CheckpointError as error:
        return str(error)
    return ""
