"""Tiny random LLMs of real architectures; their small tokenizers have the real special tokens and chat templates."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

CORPUS = ["Describe this image in detail.", "There is a red ball near the house.", "<Img> </Img> user assistant system"]

LLAMA_2 = (  # its system text stands inside the first question, and there is none by default
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_2 = (  # Llama 3.2 says what day it is
    "{{- bos_token }}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}{{- '<|eot_id|>' }}"
) + LLAMA_3.replace("bos_token + ", "")
MISTRAL = (  # 7B-Instruct-v0.2
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def _with_system(text: str) -> str:
    opening = "<|im_start|>system\n" + text + "<|im_end|>\n"
    return "{%- if messages[0]['role'] != 'system' %}{{- '" + opening + "' }}{%- endif %}" + CHATML


QWEN_2_5 = _with_system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
SMOLLM_2 = _with_system("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
QWEN_3 = (  # thoughts: the last answer has them, earlier ones do not, and a prompt may say that there are none
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
PHI_3 = (  # the text ends with EOS where nothing follows
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=512)  # fmt: skip

# name: architecture, more of its config, tokenizer class that the published folder names, chat template, special tokens
LLMS = {
    "llama-2": ("Llama", {}, "LlamaTokenizer", LLAMA_2, None),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 8}, "LlamaTokenizer", MISTRAL, None),
    "llama-3": (
        "Llama", {"tie_word_embeddings": True}, "PreTrainedTokenizerFast", LLAMA_3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
         "others": ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]},
    ),
    "qwen2.5": (
        "Qwen2", {"tie_word_embeddings": True}, "Qwen2Tokenizer", QWEN_2_5,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "others": ["<|im_start|>"]},
    ),
    "qwen3": (
        "Qwen3", {"head_dim": 8}, "Qwen2Tokenizer", QWEN_3,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "others": ["<|im_start|>"]},
    ),
    "smollm2": (
        "Llama", {"tie_word_embeddings": True}, "GPT2Tokenizer", SMOLLM_2,
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
         "unk_token": "<|endoftext|>", "others": []},
    ),
}  # fmt: skip


def byte_tokenizer(others: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, as GPT-2, Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=others, **named)


def write_llm(name: str, folder: Path, sentencepiece: Path) -> Path:
    """The folder of LLMS[name], random weights, as transformers and the publishers write it.

    Args:
        sentencepiece: folder with a LLaMA tokenizer.model, for those that have one.
    """
    architecture, more, kind, template, special = LLMS[name]
    if special is None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(sentencepiece, local_files_only=True)
    else:
        tokenizer = byte_tokenizer(**special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"TokenizersBackend"', f'"{kind}"'))
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **SIZES,
        **more,
    )  # fmt: skip
    torch.manual_seed(0)
    logging.disable_progress_bar()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
