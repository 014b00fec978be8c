"""What the checks share: facts about the config's files and this machine, each worked out when a check first asks.

A fact that cannot be worked out raises the user error that says why; the same error is told once on the page.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

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
from ...models.llm import create_llm, load_tokenizer
from ...models.llm_checks import weight_files
from ...models.llm_loading import quiet_transformers, stored_dtype
from ...models.mini_gpt4 import MiniGPT4
from ...models.shapes import META, MiniGPT4Shapes

OK, LOOK, WRONG = "ok", "look", "wrong"
LLM = "model.llama_model"
WEIGHTS = ("model.vit_ckpt", "model.q_former_model", "model.ckpt")
FAULTS = (UserError, OSError, ValueError, RuntimeError)  # of a file that is read


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    mark: str  # ok; look (it may be intended, a person should decide); wrong (it will not work as it should)
    text: str
    do: str = ""  # what to do about it; empty when all is well
    name: str = ""  # the config's key, or a word; empty: that of the check
    section: str = ""  # heading on the page; filled in from the table of checks


def of_error(error: Exception, name: str = "") -> Finding:
    """A user error, `KEY: what is wrong; what to do`, as a finding. Its name is `name`, or else KEY."""
    key = re.match(r"((?:model|run|datasets)(?:\.\w+)+): ", str(error))
    text, _, do = str(error).removeprefix(key[0] if key else "").rpartition("; ")
    return Finding(WRONG, text or do, do if text else "", name or (key[1] if key else ""))


class Unknown(Exception):
    """A fact needs a file whose key has a problem of its own, or that was not fetched yet: the check is left out."""


@dataclass
class Context:
    """A config, what it is for, and every fact about it that several checks need."""

    config: Config
    mode: str  # chat or train
    problems: dict[str, str]  # key -> what the config's own checks say. No fact is worked out from such a key.
    device_name: str | None = None  # the value of --device
    findings: list[Finding] = field(default_factory=list)

    def local(self, key: str) -> Path | None:
        """Where the file of a key of `model` is; None: null, has a problem, or its URL was not fetched."""
        path = getattr(self.config.model, key.removeprefix("model."))
        if not path or key in self.problems:
            return None
        if not path.startswith(WEB):
            return Path(resolve_path(path))
        return cached_path(path) if cached_path(path).exists() else None

    @cached_property
    def files(self) -> dict[str, FileFacts]:
        """The weight files beside the LLM, identified."""
        return {key: identify(path) for key in WEIGHTS if (path := self.local(key))}

    # -- the LLM ------------------------------------------------------------------------------------------------------

    @property
    def llm_path(self) -> Path:
        if (path := self.local(LLM)) is None:
            raise Unknown
        return path

    @cached_property
    def llm(self) -> PreTrainedModel:
        """What config.json describes, on the meta device."""
        return create_llm(str(self.llm_path), torch.float16)

    @cached_property
    def llm_files(self) -> list[FileFacts]:
        """The LLM's weight files, or the GGUF file, whose tensors are not read."""
        path = self.llm_path
        try:
            return [identify(path)] if path.suffix == ".gguf" else weight_files(path)
        except CheckpointError as error:
            raise CheckpointError(f"{LLM}: {error}") from None

    @cached_property
    def misfit(self) -> str:
        """How the LLM's weights differ from its config.json, by names and shapes; empty when they agree."""
        model, tied = self.llm, set()
        if self.llm_path.suffix == ".gguf":
            return ""
        if model.config.tie_word_embeddings:
            tied = set(getattr(model, "_tied_weights_keys", None) or ())
        targets = named_tensors(model)
        rules = {"ignore": lambda name: HARMLESS.search(name) or name in tied, "device": META}
        try:
            for file in self.llm_files:  # one by one, so that the message names the file
                load_exact(targets, file.tensors, file.path, required=set(), **rules)
            whole = {name: tensor for file in self.llm_files for name, tensor in file.tensors.items()}
            load_exact(targets, whole, self.llm_path, required=set(targets) - tied, **rules)
        except CheckpointError as error:
            return str(error)
        return ""

    @property
    def surely_differs(self) -> bool:
        """Whether the misfit is a fault: of other models than LLaMA, transformers may translate names as it loads."""
        return bool(self.misfit) and (self.llm.config.model_type == "llama" or "other shape" in self.misfit)

    @cached_property
    def llm_size(self) -> tuple[int | None, int | None]:
        """(rows, D_llm) of the LLM's embedding; (None, None) when they are not sure."""
        try:
            return (None, None) if self.surely_differs else tuple(self.llm.get_input_embeddings().weight.shape)
        except (Unknown, *FAULTS):
            return None, None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        with quiet_transformers():
            return load_tokenizer(str(self.llm_path), self.config.model.pad_token)

    # -- the model ----------------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> MiniGPT4:
        """The config's model without memory, with the LLM's own config.json and tokenizer."""
        return self.llm_path and MiniGPT4Shapes(self.config.model)

    @cached_property
    def shapes(self) -> MiniGPT4:
        """The model whose loaders say whether a file fits. An LLM that is not sure is replaced by a small one."""
        if self.llm_size[1]:
            return self.model
        ckpt = self.files.get("model.ckpt")
        width = (ckpt and ckpt.llm_width) or 8
        one = {"num_hidden_layers": 1, "num_attention_heads": 1}
        stand_in = LlamaConfig(vocab_size=8, hidden_size=width, intermediate_size=8, **one)
        return MiniGPT4Shapes(replace(self.config.model, prompt_path=None, lora=None), stand_in)

    # -- the machine --------------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        key = "run.device=" if self.mode == "train" and not self.device_name else "--device "
        name = self.config.run.device if key.startswith("run") else self.device_name
        return choose_device(name, f"{key}{name}", f"{key}cpu")

    @cached_property
    def precision(self) -> Precision:
        """What a training run or a chat computes in."""
        stored = stored_dtype(str(self.local(LLM))) if self.local(LLM) else None
        run = self.config.run if self.mode == "train" else None
        return resolve_precision(self.config.model, self.device, run, stored)
