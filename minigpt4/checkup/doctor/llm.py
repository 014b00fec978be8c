"""Checks of the LLM: its folder, its tokenizer, and whether training and chat speak to it in the form it was tuned on.

Of the weights only headers are read, and a few norms.
"""

import re
from dataclasses import replace

from ...common.errors import some
from ...common.identify import amount, gigabytes
from ...common.training_form import training_form_problems
from ...conversation.prompts import VICUNA_V0
from ...convert.vicuna.llama_meta import MODEL_SIZES
from ...convert.vicuna.prepare import DELTA_NORM
from ...convert.vicuna.tokenizer import PAD
from ...convert.vicuna.verify import read_record
from ...models.llm_checks import VICUNA, read_json
from .context import LLM, Context, LlmFacts
from .page import LOOK, OK, WRONG, Finding, of_error

FETCH = "fetch the tokenizer's files from where the weights came"
OWN = "write auto, for the chat template in the LLM's folder"


def check_llm(context: Context) -> Finding | None:
    """The folder of the LLM is whole, its weights are those of its config.json, and it is no delta."""
    llm = context.need("llm")
    if llm is None:  # a problem of the config, or not fetched
        path = context.config.model.llama_model
        return Finding(LOOK, f"{path}\nnot fetched yet") if context.to_fetch(LLM) else None
    text = f"{llm.path}\n{describe(llm)}"
    if llm.misfit:
        do = "fetch config.json and all weights again, from one place: files of two models may be mixed (7B and 13B?)"
        return Finding(WRONG if llm.surely_differs else LOOK, f"config.json and weights differ: {llm.misfit}", do)
    if not is_delta(llm):
        return Finding(OK, text)
    norm = final_norm(llm)
    if norm != norm or norm == float("inf"):
        return Finding(WRONG, f"{text}\nmodel.norm.weight holds NaN or infinity: damaged", "fetch it again")
    text += (
        f"\nlooks like a delta that was not added to LLaMA: the final norm's weights average {norm:.4f}, in a whole "
    )
    text += "LLaMA 1 and more" + "; or a download that was not finished" * (norm == 0)
    return Finding(WRONG, text, VICUNA)


def describe(llm: LlmFacts) -> str:
    """E.g. `llama 13B: 40 layers, width 5,120, vocabulary 32,001; 3 files, 13.0B numbers, float16, 26.0 GB`."""
    config, rows = llm.model.config.get_text_config(), llm.model.get_input_embeddings().num_embeddings
    dtypes = {str(t.dtype).removeprefix("torch.") for file in llm.files for t in file.tensors.values()}
    numbers = f"{amount(llm.parameters)} numbers, {'+'.join(sorted(dtypes))}" if dtypes else "GGUF"
    files = f"{len(llm.files)} file{'s' if len(llm.files) > 1 else ''}"
    name = f"{config.model_type} {MODEL_SIZES.get(config.hidden_size, '')}".strip()
    sizes = f"{config.num_hidden_layers} layers, width {config.hidden_size:,}, vocabulary {rows:,}"
    return f"{name}: {sizes}; {files}, {numbers}, {gigabytes(sum(file.bytes for file in llm.files))}"


def final_norm(llm: LlmFacts) -> float | None:
    """The mean size of the final norm's weights: 1 and more in a LLaMA, near 0 in a delta. None: no LLaMA."""
    holder = next((file for file in llm.files if "model.norm.weight" in file.tensors), None)
    if holder is None or llm.model.config.model_type != "llama":
        return None
    return float(holder.value("model.norm.weight").float().abs().mean())


def is_delta(llm: LlmFacts) -> bool:
    """Whether the weights are what has to be added to a LLaMA; or zeros, or NaN."""
    norm = final_norm(llm)
    return norm is not None and not norm >= DELTA_NORM


# -- tokenizer --------------------------------------------------------------------------------------------------------


def check_tokenizer(context: Context) -> list[Finding]:
    """The tokenizer can be read, has BOS and EOS, fits the weights, and pads with a token that no text holds."""
    tokenizer, rows, pad = context.tokenizer, context.llm_size[0], context.config.model.pad_token
    if tokenizer is None:
        return [of_error(context.errors["tokenizer"], "tokenizer")] if "tokenizer" in context.errors else []
    bos, eos, ids = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.get_vocab()
    folder, found = context.local(LLM), []
    stated = read_json(folder / "config.json", optional=True).get("bos_token_id")
    settings = read_json(folder / "special_tokens_map.json", optional=True)
    settings |= read_json(folder / "tokenizer_config.json", optional=True)
    if isinstance(stated, int) and bos is None and has_llama_pieces(tokenizer):
        text = f"has no BOS, but config.json has bos_token_id {stated}: a prompt would begin without it"
        found.append((text, 'write "bos_token": "<s>" into tokenizer_config.json'))
    elif isinstance(stated, int) and bos not in (None, stated):
        text = f"its BOS {tokenizer.bos_token} is {bos}, by config.json {stated}: another model's tokenizer?"
        found.append((text, FETCH))
    elif settings.get("add_bos_token") is False and has_llama_pieces(tokenizer):
        text = ("add_bos_token is false in tokenizer_config.json, and LLaMA was trained with BOS (this project adds it "
                "all the same; other programs that open the folder do not)")  # fmt: skip
        found.append((text, 'write "add_bos_token": true'))
    if eos is None:
        do = 'write "eos_token": "</s>" into tokenizer_config.json'
        found.append(("has no EOS, which is also the padding", do))
    if rows and (beyond := sorted((i, token) for token, i in ids.items() if i >= rows)):
        text = f"{some(f'{token} = {i}' for i, token in beyond)} past the embedding's {rows:,} rows: "
        v0 = PAD in (token for _, token in beyond)
        text += "the tokenizer is Vicuna v0's, the weights are not" if v0 else "another model's tokenizer"
        found.append((text, VICUNA if v0 else FETCH))
    elif rows and len(ids) < 0.9 * rows:  # some models have a few spare rows
        text = f"has {len(ids):,} tokens, the embedding {rows:,} rows: another model's tokenizer"
        found.append((text, FETCH))
    special = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    if pad and pad not in special | {*map(str, tokenizer.added_tokens_decoder.values())}:
        text = f"model.pad_token {pad!r} is an ordinary word: padding is never trained on, so it is not learned"
        found.append((text, "write null, or a special token of the vocabulary"))
    text = f"{len(tokenizer):,} tokens; BOS {tokenizer.bos_token} = {bos}, EOS {tokenizer.eos_token} = {eos}, "
    text += f"padding {tokenizer.pad_token}"
    return [Finding(WRONG, *said) for said in found] or [Finding(OK, text)]


def has_llama_pieces(tokenizer) -> bool:
    """LLaMA's kind of vocabulary: sentencepiece with byte pieces, and <unk> <s> </s> in front."""
    ids = tokenizer.get_vocab()
    return "<0x0A>" in ids and ids.get("<s>") == 1 and ids.get("</s>") == 2


# -- the form of prompts and answers ----------------------------------------------------------------------------------


def check_template(context: Context) -> Finding | None:
    """model.conv_template is the form of conversation that this LLM was tuned on."""
    template, name = context.need("template"), context.config.model.conv_template
    if template is None or not context.llm_size[0]:
        return None
    mark, like, why, do = family(context)
    marks = dict.fromkeys(re.findall(r"<\|[^|<>\s]+\|>", template.user + template.assistant + template.answer))
    encode = context.tokenizer.encode
    if split := [token for token in marks if len(encode(token, add_special_tokens=False)) != 1]:
        text = f"{name}: the LLM has no token {some(split)}, so it was not tuned on this template"
        return Finding(WRONG, text, f"write {VICUNA_V0.name}" if mark == OK else OWN)
    if name != VICUNA_V0.name:
        return Finding(OK, f"{name}: answers end with {some(map(repr, template.stop))}")
    if mark == OK:
        return Finding(OK, f"{name}: the LLM has Vicuna v0's form ({why})")
    return Finding(mark, f"{name} is Vicuna v0's form of a conversation, but this looks like {like} ({why})", do)


def family(context: Context) -> tuple[str, str, str, str]:
    """Which LLM this is: (mark for Vicuna v0's template, words after "this looks like", why, what to do).

    Vicuna v0 has one row more than LLaMA, for [PAD]. Raw LLaMA and Vicuna v1.1 have the same names, shapes and
    vocabulary, so what their files say of themselves is shown.
    """
    tokenizer, config, rows = context.tokenizer, context.llm.model.config, context.llm_size[0]
    ids = tokenizer.get_vocab()
    if "<|im_start|>" in ids:
        return WRONG, "an LLM that talks ChatML", "its vocabulary has <|im_start|>", OWN
    if config.model_type != "llama" or not has_llama_pieces(tokenizer):
        return WRONG, "another LLM", f"model_type {config.model_type}, and a vocabulary that is not LLaMA's", OWN
    pieces = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if rows > pieces and ids.get(PAD) == pieces:
        return OK, "Vicuna v0", f"{rows:,} rows: LLaMA's {pieces:,} and {PAD}", ""
    if rows > pieces:
        why = f"{rows:,} rows, but {pieces:,} pieces and no {PAD} in the tokenizer"
        do = f"fetch added_tokens.json too; if the LLM was not tuned on {VICUNA_V0.assistant!r}, {OWN}"
        return LOOK, "Vicuna v0 without its added_tokens.json, or a LLaMA with tokens of its own", why, do
    said = read_json(context.llm.path / "config.json", optional=True)
    evidence = {key: said[key] for key in ("_name_or_path", "max_position_embeddings", "rms_norm_eps") if key in said}
    made = read_record(context.llm.path)
    evidence |= {"prepare_vicuna.json": made["kind"]} if made else {}
    why = f"{rows:,} rows, no {PAD}; {', '.join(f'{key} {value}' for key, value in evidence.items())}"
    return WRONG, "raw LLaMA, Llama 2, a delta, or Vicuna v1.1 or later", why, VICUNA


def check_training_form(context: Context) -> list[Finding] | None:
    """A model can be built from the config, and training asks and ends an answer as the chat does."""
    model = context.need("model")
    context.need("shapes")
    if model is None or context.template is None:
        return None
    config = replace(context.config, model=model.config)
    found = training_form_problems(config, context.template)
    count = len(model.prompt_list)
    asked = f"{count} instructions, asked as the chat asks" if count else "captions without an instruction"
    text = f"a text ends with {config.model.end_sym!r}; {asked}"
    return [Finding(WRONG, *said, name=key) for key, said in found.items()] or [Finding(OK, text)]
