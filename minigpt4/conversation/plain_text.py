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
    """A function that marks the control tokens of a text, for `token_ids`. The LLM has embeddings of `vocabulary`
    tokens; a token without one is always text."""
    c = conversation
    written = c.system + c.user + c.assistant + c.answer + c.past
    names = set()
    for i, token in tokenizer.added_tokens_decoder.items():
        control = token.special or (token.content.strip() and token.content in written)
        if i >= vocabulary or (control and not c.special_in_texts):
            names.add(token.content)
    names -= {IMAGE_BEFORE, IMAGE_AFTER.strip()}  # prompt files write these two around the image, as the template does
    if not names:
        return str
    control_tokens = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return lambda text: mark_control_tokens(text, control_tokens)


def longest_token(tokenizer) -> int:
    """Characters of the longest token: a text of n times as many has n tokens at least."""
    return max(map(len, tokenizer.get_vocab()))


def token_ids(tokenizer, text: str | list[str]) -> list:
    """Ids of `text`, or of each text of a list, without BOS or EOS. What `text_marker` marked is read as text."""
    marked = any(MARK in one for one in ([text] if isinstance(text, str) else text))
    options = {"sanitize_control_tokens": True} if marked else {}
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]
