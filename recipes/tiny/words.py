"""A warm start for a Q-Former from scratch: which words do the captions use? The LLM's layers stay out of it.

Each query, projected, is a point among the LLM's input embeddings; the words it is near to are what it says. A picture
costs a twentieth of what it costs through the LLM, and the weights are those that stage 0 goes on with: none are added.
"""

from pathlib import Path

import torch
from torch import Tensor

from minigpt4.common.errors import ConfigError
from minigpt4.common.paths import read_text, resolve_path
from minigpt4.common.registry import MODELS
from minigpt4.models import MiniGPT4
from minigpt4.models.batch import to_device
from minigpt4.tasks.warm_start import words_loss

from .captions import texts_of
from .photos import WORD


@MODELS.register("mini_gpt4_words")
class MiniGPT4Words(MiniGPT4):
    """MiniGPT4 whose loss is that of the words alone; its checkpoints are MiniGPT4's.

    `model.extra.words` names a file with the words that count, one a line (stop words are not among them).
    """

    def __init__(self, config, *args, **keys):
        super().__init__(config, *args, **keys)
        self.words = self._read_words(config.extra.get("words"))
        ids = sorted({i for tokens in self.words.values() for i in tokens})
        self.column = {token: column for column, token in enumerate(ids)}
        embeddings = self.llama_model.get_input_embeddings().weight.detach()
        vocabulary = embeddings[torch.tensor(ids, dtype=torch.long)].float().to(self.device)
        self.register_buffer("vocabulary", vocabulary, persistent=False)  # (V, D_llm)

    def _read_words(self, path: str | None) -> dict[str, list[int]]:
        """word -> the LLM's tokens of it, within a sentence"""
        if path is None or not Path(resolve_path(path)).is_file():
            raise ConfigError(f"model.extra.words: {path!r} should be a text file, a word a line")
        words = read_text(resolve_path(path)).split()
        return {word: self.token_ids(f" {word}") for word in words}

    def targets(self, rows: list[list[str]]) -> Tensor:
        """(B, V): the share of each token among the words of a row's captions; a word counts once a caption."""
        table = torch.zeros(len(rows), len(self.column))
        for row, captions in enumerate(rows):
            for caption in captions:
                for token in {t for w in WORD.findall(caption.lower()) for t in self.words.get(w, ())}:
                    table[row, self.column[token]] += 1
        return table / table.sum(1, keepdim=True).clamp(min=1)

    def build_batch(self, samples: dict) -> dict[str, Tensor]:
        """The image, and the words of its captions."""
        return {"image": samples["image"], "words": self.targets(texts_of(samples))}

    def forward(self, samples: dict) -> dict[str, Tensor]:
        """Cross-entropy between the captions' words and the mean of the queries' choices: {"loss": scalar}."""
        batch = to_device(samples if "words" in samples else self.build_batch(samples), self.device)
        queries = self.encode_img(batch["image"])  # (B, Q, D_llm)
        with torch.autocast(queries.device.type, enabled=False):
            return {"loss": words_loss(queries.float(), self.vocabulary, batch["words"])}
