"""MiniGPT4 on the meta device: names, shapes and dtypes without memory and without weight files."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from ..common.checkpoint import empty_weights
from ..common.paths import resolve_path
from ..common.precision import Precision, resolve_precision
from ..common.schema import ModelConfig
from .llm import create_llm, load_tokenizer
from .mini_gpt4 import MiniGPT4

META = torch.device("meta")


class MiniGPT4Shapes(MiniGPT4):
    """Opens config.json and the tokenizer in the LLM's folder only; with `llm_config`, not even these."""

    def __init__(
        self, config: ModelConfig, llm_config: transformers.PreTrainedConfig | None = None,
        precision: Precision | None = None,
    ):  # fmt: skip
        self.llm_config = llm_config
        with empty_weights():
            super().__init__(config, META, precision or resolve_precision(config, META))

    def load_llm(
        self, device: torch.device, apart: bool
    ) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase | None]:
        """The LLM by its config, and its tokenizer or None."""
        path = resolve_path(self.config.llama_model)
        llm = create_llm(self.llm_config or path, self.precision.llm)
        here = self.llm_config is None and (path.endswith(".gguf") or any(Path(path).glob("tokenizer.*")))
        return llm, load_tokenizer(path, self.config.pad_token) if here else None

    def load_vision(self, device: torch.device) -> None:
        """Nothing: shapes need no file."""

    def load_ckpt(self) -> None:
        """Nothing: shapes need no file."""

    def embed_ids(self, ids: Tensor) -> Tensor:
        """ids (...) on any device -> embeddings (..., D_llm)."""
        return self.llama_model.get_input_embeddings()(ids)
