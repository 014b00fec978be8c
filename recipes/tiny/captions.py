"""Several texts behind one image: the ViT and the Q-Former are computed once for all of them, and so is the prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt4.common.registry import MODELS
from minigpt4.conversation.prompts import IMAGE_AFTER, IMAGE_BEFORE
from minigpt4.models import MiniGPT4
from minigpt4.models.batch import lay_out_batch

PROMPT, PADDING = -1, -2  # what a position belongs to, if it is of no text
Text = str | tuple[str, str]  # a caption, or a question and its answer


@MODELS.register("mini_gpt4_captions")
class MiniGPT4Captions(MiniGPT4):
    """MiniGPT4 whose rows may have several texts: "text_input" is list[B] of a text or of a list of texts, and a text
    may be (question, answer). Each counts as if it had a row of its own. Its checkpoints are MiniGPT4's."""

    def build_batch(self, samples: dict) -> dict[str, Tensor]:
        """See `MiniGPT4.build_batch`. A row is [prompt, image, prompt, text, text, ...].

        Returns:
            the same tensors; position_ids (B, S), where each text comes right after the prompt; and text (B, S), the
            number of the text that each position belongs to, or PROMPT or PADDING.
        """
        image, rows = samples["image"], texts_of(samples)
        if isinstance(rows[0][0], str):  # a batch is of one dataset, so of one kind
            texts = [[([], ids) for ids in self.caption_ids(captions)] for captions in rows]
            prompts = self.prompt_ids(samples)
        else:
            texts = [*map(self._question_ids, rows)]
            before = self.segment_ids([self.config.prompt_template.partition("{}")[0] + IMAGE_BEFORE])
            prompts = [([i for part in before for i in part], [])] * len(rows)
        tokens, pad = self.image_tokens(image), self.tokenizer.pad_token_id
        joined = [[i for question, answer in row for i in question + answer] for row in texts]
        batch = lay_out_batch(prompts, joined, tokens, pad)
        shape = batch["input_ids"].shape
        text, positions = torch.full(shape, PADDING), torch.zeros(shape, dtype=torch.long)
        predicted_from = torch.arange(-1, shape.numel() - 1)  # of each place, where its token is predicted; or PADDING
        for row, (prompt, its) in enumerate(zip(prompts, texts, strict=True)):
            end = start = sum(map(len, prompt)) + tokens
            text[row, :end], positions[row, :end] = PROMPT, torch.arange(end)
            for number, (question, answer) in enumerate(its):
                length = len(question) + len(answer)
                place, first = slice(start, start + length), row * shape[1] + start
                text[row, place], positions[row, place] = number, torch.arange(end, end + length)
                if length:
                    predicted_from[first] = row * shape[1] + end - 1
                predicted_from[first : first + len(question)] = PADDING  # a question is not trained on
                start += length
        sources = predicted_from[batch["target_positions"] + 1]
        batch["target_ids"], batch["target_positions"] = batch["target_ids"][sources >= 0], sources[sources >= 0]
        return {"image": image, "position_ids": positions, "text": text} | batch

    def _question_ids(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The ids of each question, from the image's end to where the answer begins, and of its answer."""
        after = self.config.prompt_template.partition("{}")[2]
        questions = [f"{IMAGE_AFTER}{question}{after}" for question, _ in pairs]
        return [*zip(self.token_ids(questions), self.caption_ids([answer for _, answer in pairs]), strict=True)]

    def read_batch(self, batch: dict[str, Tensor]) -> Tensor:
        """See `MiniGPT4.read_batch`. A text sees the prompt and itself, no other text."""
        text = batch["text"]
        seen = (text[:, :, None] == text[:, None, :]) | (text == PROMPT)[:, None, :]  # (B, S, S)
        return super().read_batch(batch | {"seen": seen.tril()})


def texts_of(samples: dict) -> list[list[Text]]:
    """The texts of each row, also where it has one alone."""
    return [texts if isinstance(texts, list) else [texts] for texts in samples["text_input"]]
