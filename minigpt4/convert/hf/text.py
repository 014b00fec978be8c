"""Write the files around the weights: processor, tokenizer, chat template, generation options, model card."""

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

from ...common.paths import resolve_path
from ...common.schema import Config
from ...conversation.chat import end_ids
from ...conversation.chat_template import conversation_of
from ...conversation.generation import Decoding
from ...conversation.prompts import IMAGE_AFTER, IMAGE_BEFORE, Conversation
from .files.processing_minigpt4 import MiniGPT4ImageProcessor, MiniGPT4Processor
from .layout import IMAGE_TOKEN

FILES = Path(__file__).parent / "files"
TOKENIZER_OPTIONS = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")


def write_processor(model: nn.Module, vis_processor, folder: Path) -> MiniGPT4Processor:
    """Write the processor, its code, the tokenizer and the chat template."""
    conversation = conversation_of(model.config.conv_template, model.tokenizer)
    resize, *_, normalize = vis_processor.transform.transforms
    MiniGPT4ImageProcessor.register_for_auto_class()
    MiniGPT4Processor.register_for_auto_class()
    processor = MiniGPT4Processor(
        MiniGPT4ImageProcessor(resize.size[0], normalize.mean, normalize.std),
        image_tokenizer(model.tokenizer),
        num_query_tokens=model.query_tokens.shape[1],
        stop=conversation.stop,
        keep_after=conversation.keep_after,
        drop_leading_ids=conversation.drop_leading_ids,
        chat_template=chat_template(conversation),
    )
    processor.tokenizer.chat_template = processor.chat_template
    processor.save_pretrained(folder)
    spiece = Path(resolve_path(model.config.llama_model)) / "tokenizer.model"
    if spiece.is_file():  # for other programs; transformers reads tokenizer.json
        shutil.copy(spiece, folder / spiece.name)
    return processor


def image_tokenizer(tokenizer) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with the image token; it pads on the left, for generation."""
    options = {name: getattr(tokenizer, name) for name in TOKENIZER_OPTIONS}
    found = plain_tokenizer(tokenizer.backend_tokenizer.to_str(), options, padding_side="left")
    found.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return found


def plain_tokenizer(tokenizer_json: str, options: dict, **more) -> PreTrainedTokenizerFast:
    """A tokenizer of the plain class, which reads tokenizer.json unchanged. LlamaTokenizer would replace our corrected
    rules for spaces with its own."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json),
        clean_up_tokenization_spaces=False,
        **{name: options[name] for name in TOKENIZER_OPTIONS if options.get(name)},
        **more,
    )


def chat_template(conversation: Conversation) -> str:
    """A conversation as a Jinja chat template; the content of a message is text, or a list of images and texts."""
    form = {key: getattr(conversation, key) for key in ("system", "user", "answer", "assistant")}
    form |= {"past": conversation.past or conversation.assistant, "image": IMAGE_BEFORE + IMAGE_TOKEN + IMAGE_AFTER}
    code = (FILES / "chat_template.jinja").read_text().rstrip()
    return "{%- set form = " + json.dumps(form) + " %}\n" + code


def write_generation_config(model: nn.Module, processor: MiniGPT4Processor, config: Blip2Config, folder: Path) -> None:
    """Write generation_config.json: the chat's options and all ids and strings that end an answer."""
    tokenizer, chat = processor.tokenizer, Decoding(temperature=model.config.temperature)
    vocabulary = tokenizer.get_vocab()
    # Programs without the tokenizer cannot use stop strings, so those of one token are ids too.
    spelled = {vocabulary[piece] for mark in processor.stop for piece in (mark, "▁" + mark) if piece in vocabulary}
    row_added = config.text_config.vocab_size > config.minigpt4["llm_vocab_size"]
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(end_ids(model.llama_model, model.tokenizer) | spelled),
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=processor.stop,
        suppress_tokens=[config.image_token_index] if row_added else None,
        do_sample=True,
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        max_new_tokens=chat.max_new_tokens,
    ).save_pretrained(folder)


def write_model_card(config: Config, whole: Blip2ForConditionalGeneration, folder: Path, name: str) -> None:
    """Write README.md, which model hubs show. `whole` is the exported model."""
    options, usage = GenerationConfig.from_pretrained(folder), (FILES / "usage.py.txt").read_text().strip()
    paths = {key: getattr(config.model, key) for key in ("vit_ckpt", "q_former_model", "ckpt", "llama_model")}
    facts = {key: Path(path).name if path else "random numbers" for key, path in paths.items()} | {
        "name": name, "cfg_path": Path(config.path).name, "usage": usage, "hf": whole.config, "options": options,
        "stop": ", ".join(f"`{mark}`" for mark in options.stop_strings), "parameters": whole.num_parameters(),
        "dtypes": " and ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in whole.parameters()})),
    }  # fmt: skip
    (folder / "README.md").write_text((FILES / "model_card.md").read_text().format(**facts))
