"""Checks of the LLM: its folder, its tokenizer, and whether training and chat speak to it in the form it was tuned on.

Of the weights only headers are read, and a few norms.
"""

import re

from ...common.errors import some
from ...common.identify import amount, gigabytes
from ...conversation.chat_template import conversation_of
from ...conversation.prompts import VICUNA_V0
from ...convert.vicuna.llama_meta import MODEL_SIZES
from ...convert.vicuna.prepare import DELTA_NORM
from ...convert.vicuna.tokenizer import PAD
from ...models.llm_checks import VICUNA, read_json
from .context import LLM, LOOK, OK, WRONG, Context, Finding

FETCH = "fetch the tokenizer's files from where the weights came"
OWN = "write auto, for the chat template in the LLM's folder"


def check_llm(context: Context) -> Finding | None:
    """The folder of the LLM is whole, its weights are those of its config.json, and it is no delta."""
    if context.local(LLM) is None:
        return Finding(LOOK, f"{context.config.model.llama_model}\nnot fetched yet")
    if context.misfit:
        do = "fetch config.json and all weights again, from one place: files of two models may be mixed (7B and 13B?)"
        mark = WRONG if context.surely_differs else LOOK
        return Finding(mark, f"config.json and weights differ: {context.misfit}", do)
    text, norm = f"{context.llm_path}\n{describe(context)}", None
    holder = next((file for file in context.llm_files if "model.norm.weight" in file.tensors), None)
    if holder and context.llm.config.model_type == "llama":
        norm = float(holder.value("model.norm.weight").float().abs().mean())  # 1 and more in a LLaMA, near 0 in a delta
    if norm is None or norm >= DELTA_NORM:
        return Finding(OK, text)
    text += (f"\nlooks like a delta that was not added to LLaMA: the final norm's weights average {norm:.4f}, in a "
             "whole LLaMA 1 and more; 0 or nan: the download was not finished, or is damaged")  # fmt: skip
    return Finding(WRONG, text, VICUNA)


def describe(context: Context) -> str:
    """E.g. `llama 13B: 40 layers, width 5,120, vocabulary 32,001; 3 files, 13.0B numbers, float16, 26.0 GB`."""
    files, config = context.llm_files, context.llm.config.get_text_config()
    dtypes = {str(t.dtype).removeprefix("torch.") for file in files for t in file.tensors.values()}
    numbers = f"{amount(sum(file.parameters for file in files))} numbers, {'+'.join(sorted(dtypes))}"
    name = f"{config.model_type} {MODEL_SIZES.get(config.hidden_size, '')}".strip()
    rows = context.llm.get_input_embeddings().num_embeddings
    sizes = f"{config.num_hidden_layers} layers, width {config.hidden_size:,}, vocabulary {rows:,}"
    size = gigabytes(sum(file.bytes for file in files))
    return f"{name}: {sizes}; {len(files)} file{'s' * (len(files) > 1)}, {numbers if dtypes else 'GGUF'}, {size}"


# -- tokenizer --------------------------------------------------------------------------------------------------------


def check_tokenizer(context: Context) -> list[Finding]:
    """The tokenizer can be read, has the BOS of config.json, and fits the weights."""
    tokenizer, rows = context.tokenizer, context.llm_size[0]
    bos, eos, ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.get_vocab()
    found = []
    stated = read_json(context.llm_path / "config.json", optional=True).get("bos_token_id")
    if isinstance(stated, int) and bos != stated and (bos is not None or has_llama_pieces(tokenizer)):
        text = f"its BOS {tokenizer.bos_token} is {bos}, by config.json {stated}: another model's tokenizer?"
        found.append((text, FETCH))
    if rows and (beyond := sorted((i, token) for token, i in ids.items() if i >= rows)):
        text = f"{some(f'{token} = {i}' for i, token in beyond)} past the embedding's {rows:,} rows: "
        v0 = PAD in (token for _, token in beyond)
        text += "the tokenizer is Vicuna v0's, the weights are not" if v0 else "another model's tokenizer"
        found.append((text, VICUNA if v0 else FETCH))
    elif rows and len(ids) < 0.9 * rows:  # some models have a few spare rows
        text = f"has {len(ids):,} tokens, the embedding {rows:,} rows: another model's tokenizer"
        found.append((text, FETCH))
    text = f"{len(tokenizer):,} tokens; BOS {tokenizer.bos_token} = {bos}, EOS {tokenizer.eos_token} = {eos}, "
    text += f"padding {tokenizer.pad_token}"
    return [Finding(WRONG, *said) for said in found] or [Finding(OK, text)]


def has_llama_pieces(tokenizer) -> bool:
    """LLaMA's kind of vocabulary: sentencepiece with byte pieces, and <unk> <s> </s> in front."""
    ids = tokenizer.get_vocab()
    return "<0x0A>" in ids and ids.get("<s>") == 1 and ids.get("</s>") == 2


# -- the form of prompts and answers ----------------------------------------------------------------------------------


def check_template(context: Context) -> Finding | None:
    """model.conv_template is the form of conversation that this LLM was tuned on.

    Vicuna v0 has one row more than LLaMA, for [PAD]. Raw LLaMA and Vicuna v1.1 have the same names, shapes and
    vocabulary, so what their files say of themselves is shown.
    """
    tokenizer, rows = context.tokenizer, context.llm_size[0]
    template = conversation_of(context.config.model.conv_template, tokenizer)
    if not rows:
        return None
    name, ids, kind = template.name, tokenizer.get_vocab(), context.llm.config.model_type
    marks = dict.fromkeys(re.findall(r"<\|[^|<>\s]+\|>", template.user + template.assistant + template.answer))
    if split := [mark for mark in marks if len(tokenizer.encode(mark, add_special_tokens=False)) != 1]:
        return Finding(WRONG, f"{name}: the LLM has no token {some(split)}, so it was not tuned on this template", OWN)
    if name != VICUNA_V0.name:
        return Finding(OK, f"{name}: answers end with {some(map(repr, template.stop))}")
    pieces = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    mark, do = WRONG, OWN
    if "<|im_start|>" in ids:
        like = "an LLM that talks ChatML (its vocabulary has <|im_start|>)"
    elif kind != "llama" or not has_llama_pieces(tokenizer):
        like = f"another LLM (model_type {kind}, and a vocabulary that is not LLaMA's)"
    elif rows > pieces and ids.get(PAD) == pieces:
        return Finding(OK, f"{name}: the LLM has Vicuna v0's form ({rows:,} rows: LLaMA's {pieces:,} and {PAD})")
    elif rows > pieces:
        like = "Vicuna v0 without its added_tokens.json, or a LLaMA with tokens of its own "
        like += f"({rows:,} rows, but {pieces:,} pieces and no {PAD} in the tokenizer)"
        mark, do = LOOK, f"fetch added_tokens.json too; if the LLM was not tuned on {VICUNA_V0.assistant!r}, {OWN}"
    else:
        said = read_json(context.llm_path / "config.json", optional=True)
        told = [f"{k} {said[k]}" for k in ("_name_or_path", "max_position_embeddings", "rms_norm_eps") if k in said]
        like = f"raw LLaMA, Llama 2, a delta, or Vicuna v1.1 or later ({rows:,} rows, no {PAD}; {', '.join(told)})"
        do = VICUNA
    return Finding(mark, f"{name} is Vicuna v0's form of a conversation, but this looks like {like}", do)


def check_model(context: Context) -> Finding:
    """A model can be built from the config."""
    model, _ = context.model, context.shapes
    count = len(model.prompt_list)
    asked = f"{count} instructions, asked as the chat asks" if count else "captions without an instruction"
    return Finding(OK, f"a text ends with {model.config.end_sym!r}; {asked}")
