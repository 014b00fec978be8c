"""Several captions behind one image: the ViT, the Q-Former and the prompt are computed once for all of them."""

from itertools import chain

import torch
from torch import Tensor

from minigpt4.common.registry import MODELS
from minigpt4.models import MiniGPT4
from minigpt4.models.batch import lay_out_batch
from minigpt4.models.llm import head_input_hidden_states

PROMPT, PADDING = -1, -2  # what a position belongs to, if it is of no caption


@MODELS.register("mini_gpt4_captions")
class MiniGPT4Captions(MiniGPT4):
    """MiniGPT4 whose rows may have several captions: "text_input" is list[B] of a text or of a list of texts. Each
    caption counts as if it had a row of its own. Its checkpoints are MiniGPT4's."""

    def build_batch(self, samples: dict) -> dict[str, Tensor]:
        """See `MiniGPT4.build_batch`. A row is [prompt, image, prompt, caption, caption, ...].

        Returns:
            the same tensors; position_ids (B, S), where each caption comes right after the prompt; and caption (B, S),
            the number of the caption that each position belongs to, or PROMPT or PADDING.
        """
        image, rows = samples["image"], texts_of(samples)
        ids = iter(self.caption_ids([*chain(*rows)]))
        captions = [[next(ids) for _ in row] for row in rows]
        prompts, tokens = self.prompt_ids(samples), self.image_tokens(image)
        batch = lay_out_batch(prompts, [[*chain(*row)] for row in captions], tokens, self.tokenizer.pad_token_id)
        shape = batch["input_ids"].shape
        caption, positions = torch.full(shape, PADDING), torch.zeros(shape, dtype=torch.long)
        predicted_from = torch.arange(-1, shape.numel() - 1)  # of each place, where its token is predicted
        for row, (prompt, its) in enumerate(zip(prompts, captions, strict=True)):
            end = start = sum(map(len, prompt)) + tokens
            caption[row, :end], positions[row, :end] = PROMPT, torch.arange(end)
            for number, one in enumerate(its):
                place = slice(start, start + len(one))
                caption[row, place], positions[row, place] = number, torch.arange(end, end + len(one))
                if one:
                    predicted_from[row * shape[1] + start] = row * shape[1] + end - 1
                start += len(one)
        batch["target_positions"] = predicted_from[batch["target_positions"] + 1]
        return {"image": image, "position_ids": positions, "caption": caption} | batch

    def read_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """See `MiniGPT4.read_batch`. A caption sees the prompt and itself, no other caption."""
        embeds, caption = self.embed_batch(batch), batch["caption"]
        seen = (caption[:, :, None] == caption[:, None, :]) | (caption == PROMPT)[:, None, :]  # (B, S, S)
        mask = torch.zeros(seen.shape, dtype=embeds.dtype, device=embeds.device)
        mask.masked_fill_(~seen.tril(), torch.finfo(embeds.dtype).min)
        return head_input_hidden_states(
            self.llama_model, inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=batch["position_ids"]
        )


def texts_of(samples: dict) -> list[list[str]]:
    """The texts of each row, also where it has one alone."""
    return [[texts] if isinstance(texts, str) else texts for texts in samples["text_input"]]
