"""Write the files around the weights: processor, tokenizer, chat template, generation options, model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import Blip2Config, GenerationConfig, PreTrainedTokenizerFast

from ...common.errors import ConfigError
from ...common.paths import resolve_path
from ...common.schema import Config
from ...conversation.chat import end_ids
from ...conversation.chat_template import conversation_of
from ...conversation.generation import Decoding
from ...conversation.prompts import IMAGE_AFTER, IMAGE_BEFORE, Conversation
from .files.processing_minigpt4 import MiniGPT4ImageProcessor, MiniGPT4Processor
from .layout import IMAGE_TOKEN

FILES = Path(__file__).parent / "files"

# Sentences of the model card
ROW_NEW = "Its row is new, a copy of row 0, and `suppress_tokens` prevents it from being generated."
ROW_FREE = "Its row was not used by the tokenizer."
EPS_PLAIN = (
    "`post_layernorm` had epsilon 1e-5 in training. BLIP-2 has one value for all vision norms, here the ViT's 1e-6, "
    "a relative change of its output of at most {} (on black, grey, white and noise)."
)
EPS_WIDE = (
    "The vision tower is one attention head wider than the original's, with zeros. Its output varies so little that "
    "BLIP-2's one epsilon for all vision norms would be a relative error of up to {}; the wider form is exact."
)


@dataclass(frozen=True)
class Facts:
    """Facts for the model card that are not in config.json."""

    name: str
    parameters: int
    dtypes: str
    plain_error: float  # relative error of ln_vision in the plain layout
    wide: bool
    row_added: bool
    checked: str = "Nothing was compared (--no-check)."


def write_processor(model: nn.Module, pixels: dict, folder: Path) -> MiniGPT4Processor:
    """Write the processor, its code, the tokenizer and the chat template.

    Args:
        pixels: image_size, image_mean, image_std.
    """
    conversation = conversation_of(model.config.conv_template, model.tokenizer)
    template = chat_template(conversation)
    tokenizer = image_tokenizer(model.tokenizer)
    tokenizer.chat_template = template
    MiniGPT4ImageProcessor.register_for_auto_class()
    MiniGPT4Processor.register_for_auto_class()
    processor = MiniGPT4Processor(
        MiniGPT4ImageProcessor(**pixels),
        tokenizer,
        num_query_tokens=model.query_tokens.shape[1],
        stop=conversation.stop,
        keep_after=conversation.keep_after,
        drop_leading_ids=conversation.drop_leading_ids,
        chat_template=template,
    )
    processor.save_pretrained(folder)
    spiece = Path(resolve_path(model.config.llama_model)) / "tokenizer.model"
    if spiece.is_file():  # for other programs; transformers reads tokenizer.json
        shutil.copy(spiece, folder / spiece.name)
    return processor


def image_tokenizer(tokenizer) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with the image token; it pads on the left, for generation.

    Its class is the plain one, which reads tokenizer.json unchanged. LlamaTokenizer would replace our corrected rules
    for spaces with its own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"export-hf: {type(tokenizer).__name__} cannot be written as tokenizer.json")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    found = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend.to_str()),
        padding_side="left",
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **{name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name)},
    )
    found.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return found


def chat_template(conversation: Conversation) -> str:
    """A conversation as a Jinja chat template; the content of a message is text, or a list of images and texts."""

    def literal(text: str) -> str:
        return "{{- " + json.dumps(text) + " }}" if text else ""

    def around(text: str, inner: str) -> str:
        before, after = text.split("{text}")
        return literal(before) + inner + literal(after)

    image = IMAGE_BEFORE + IMAGE_TOKEN + IMAGE_AFTER
    system = literal(conversation.system)
    if system:
        own = "{%- if messages and messages[0]['role'] == 'system' %}{{- say(messages[0]['content']) }}{%- else %}"
        system = own + system + "{%- endif %}"
        others = "{%- elif not (message['role'] == 'system' and loop.first) %}"
    else:
        others = "{%- else %}"
    return "\n".join(
        [
            "{%- macro say(content) %}{%- if content is string %}{{- content }}{%- else %}"
            "{%- for part in content %}{%- if part['type'] == 'image' %}" + literal(image) + "{%- else %}"
            "{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}{%- endmacro %}",
            system,
            "{%- for message in messages %}",
            "{%- if message['role'] == 'user' %}" + around(conversation.user, "{{- say(message['content']) }}"),
            "{%- elif message['role'] == 'assistant' %}"
            + literal(conversation.past or conversation.assistant)
            + around(conversation.answer, "{{- say(message['content']) }}"),
            others + "{{- raise_exception('this model knows no message of the role ' + message['role']) }}",
            "{%- endif %}{%- endfor %}",
            "{%- if add_generation_prompt %}" + literal(conversation.assistant) + "{%- endif %}",
        ]
    )


def write_generation_config(model: nn.Module, processor: MiniGPT4Processor, folder: Path, image_id: int | None) -> None:
    """Write generation_config.json: the chat's options and all ids and strings that end an answer.

    Args:
        image_id: the image token's id if its row is new, so that it is never generated; else None.
    """
    tokenizer, chat = processor.tokenizer, Decoding(temperature=model.config.temperature)
    vocabulary = tokenizer.get_vocab()
    # Programs without the tokenizer cannot use stop strings, so those of one token are ids too.
    spelled = {vocabulary[piece] for mark in processor.stop for piece in (mark, "▁" + mark) if piece in vocabulary}
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(end_ids(model.llama_model, model.tokenizer) | spelled),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=processor.stop,
        suppress_tokens=None if image_id is None else [image_id],
        do_sample=True,
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        max_new_tokens=chat.max_new_tokens,
    ).save_pretrained(folder)


def write_model_card(config: Config, hf: Blip2Config, facts: Facts, folder: Path) -> None:
    """Write README.md, which model hubs show."""
    options = GenerationConfig.from_pretrained(folder)
    values = {
        "name": facts.name,
        "cfg_path": Path(config.path).name,
        "usage": (FILES / "usage.py.txt").read_text().strip(),
        "vision_layers": hf.vision_config.num_hidden_layers,
        "vision_width": hf.minigpt4.get("vision_width", hf.vision_config.hidden_size),
        "queries": hf.num_query_tokens,
        "llm_type": hf.text_config.model_type,
        "llm_layers": hf.text_config.num_hidden_layers,
        "llm_width": hf.text_config.hidden_size,
        "parameters": f"{facts.parameters:,}",
        "dtypes": facts.dtypes,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "stop": ", ".join(f"`{mark}`" for mark in options.stop_strings),
        "vit_ckpt": _file(config.model.vit_ckpt),
        "q_former_model": _file(config.model.q_former_model),
        "ckpt": _file(config.model.ckpt),
        "llama_model": _file(config.model.llama_model),
        "image_token_id": hf.image_token_index,
        "row_note": ROW_NEW if facts.row_added else ROW_FREE,
        "eps_note": (EPS_WIDE if facts.wide else EPS_PLAIN).format(f"{facts.plain_error:.0e}"),
        "checked": facts.checked,
    }
    (folder / "README.md").write_text(Template((FILES / "model_card.md").read_text()).substitute(values))


def _file(path: str | None) -> str:
    return Path(path).name if path else "random numbers"
