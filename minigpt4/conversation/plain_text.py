"""What people and the LLM write is text: `<|im_end|>` in a question is no control token, and ends no turn.

Only the template writes control tokens. Those in other texts are marked, and the tokenizer reads marked ones as text
(`sanitize_control_tokens` of transformers).
"""

import re
from collections.abc import Callable

from transformers.utils.chat_template_utils import _CONTROL_TOKEN_START as MARK
from transformers.utils.chat_template_utils import mark_control_tokens

from .prompts import IMAGE_AFTER, IMAGE_BEFORE, Conversation


def text_marker(tokenizer, conversation: Conversation, vocabulary: int) -> Callable[[str], str]:
    """A function that marks the control tokens of a text, for `token_ids`.

    Args:
        conversation: may say that special tokens count in every text (`special_in_texts`, as in the original).
        vocabulary: how many tokens the LLM has embeddings of; a token without one is always text.
    """
    c = conversation
    written = c.system + c.user + c.assistant + c.answer + c.past
    added = [(i, token, token.content) for i, token in tokenizer.added_tokens_decoder.items()]
    names = [name for i, _, name in added if i >= vocabulary]
    if not c.special_in_texts:
        names += [name for _, token, name in added if token.special or (name.strip() and name in written)]
    # Prompt files write these two around the image, as the template does.
    names = sorted({*names} - {IMAGE_BEFORE, IMAGE_AFTER.strip()}, key=len, reverse=True)
    if not names:
        return str
    control_tokens = re.compile("|".join(map(re.escape, names)))
    return lambda text: mark_control_tokens(text, control_tokens)


def longest_token(tokenizer) -> int:
    """Characters of the longest token: a text of n times as many has n tokens at least."""
    return max(map(len, tokenizer.get_vocab()))


def token_ids(tokenizer, text: str | list[str]) -> list:
    """Ids of `text` by itself, without BOS or EOS; of a list, the ids of each text. What `text_marker` marked is read
    as text."""
    marked = any(MARK in one for one in ([text] if isinstance(text, str) else text))
    options = {"sanitize_control_tokens": True} if marked else {}
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]
