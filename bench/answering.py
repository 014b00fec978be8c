"""Rows of answers: a token's time, the first token of a later turn, a folder of pictures, the start of a process."""

import copy
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteriaList

from minigpt4.common.paths import PROJECT
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import ChatState, Turn

from . import sizes
from .input import photo
from .sizes import SizeS
from .timer import Line, Setting

QUESTION = "Describe this image in detail."
LOADED = {"8 bit": ("8bit", "torchao", 1.0), "4 bit": ("4bit", "bitsandbytes", 0.5)}  # key, package, bytes of a weight


class Ticks:
    """The time of each step of `generate`."""

    def __init__(self, setting: Setting):
        self.clock = setting.clock
        self.seen: list[float] = []

    def __call__(self, *_, **__) -> Tensor:
        self.seen.append(self.clock())
        return torch.zeros(1, dtype=torch.bool)

    def of_a_token(self) -> float:
        """Seconds; the first token, which needs the whole context, does not count."""
        return (self.seen[-1] - self.seen[0]) / (len(self.seen) - 1)


def asked(chat: Chat, question: str = QUESTION) -> ChatState:
    """A conversation with a picture and a question that waits."""
    conv = chat.new_conversation()
    chat.upload_img(Image.open(photo()), conv)
    chat.ask(question, conv)
    return conv


def context_of(chat: Chat) -> Tensor:
    """What the LLM reads, (1, T, D_llm)."""
    return chat.model.embed_segments(asked(chat).segments(chat.as_text)).detach()


def linear_weights(llm: nn.Module) -> int:
    return sum(p.numel() for p in llm.get_decoder().layers.parameters() if p.ndim == 2)


@torch.no_grad()
def decode(setting: Setting) -> list[Line]:
    """A token of the small model in each precision, against transformers' `generate` and the memory's bandwidth."""
    tokens = 4 if setting.quick else 16
    chats = {"default": sizes.small_chat(setting)}
    if not setting.quick:
        chats["fp32"] = sizes.small_chat(setting, "model.llama_precision=fp32")
        for name, (key, package, _) in LOADED.items():
            if find_spec(package):
                chats[name] = sizes.small_chat(setting, f"model.low_resource={key}")

    def ours(chat: Chat) -> float:
        conv, ticks = asked(chat), Ticks(setting)
        chat.answer(conv, do_sample=False, min_length=tokens + 1, max_new_tokens=tokens, on_step=ticks)
        return ticks.of_a_token()

    default = chats["default"].model.llama_model
    llm = AutoModelForCausalLM.from_config(default.config, dtype=default.dtype, attn_implementation="sdpa").eval()
    llm.load_state_dict(default.state_dict(), assign=True)
    context = context_of(chats["default"])
    config = GenerationConfig(do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=sizes.PAD)

    def theirs() -> float:
        ticks = Ticks(setting)
        ones = torch.ones(context.shape[:2], dtype=torch.long)
        stopping = StoppingCriteriaList([ticks])
        llm.generate(inputs_embeds=context, attention_mask=ones, generation_config=config, stopping_criteria=stopping)
        return ticks.of_a_token()

    moving, gigabytes = sizes.bandwidth_ways(setting.quick)
    ways = {name: lambda chat=chat: ours(chat) for name, chat in chats.items()}
    best = setting.alternate(ways | {"transformers": theirs} | moving)
    speed = gigabytes / min(best["copy"], best["read"])
    ms, unit = {name: 1000 * seconds for name, seconds in best.items()}, f"m{setting.unit}"
    dtype = str(default.dtype).removeprefix("torch.")
    total, linear = sum(p.numel() for p in default.parameters()), linear_weights(default)

    def share(name: str, size: float) -> Line:
        least = size * 1e-6 / speed  # ms
        note = f"{size * 1e-6:.0f} MB at {speed:.1f} GB/s: {least:.1f} ms"
        return Line(f"share of the bandwidth, {name}", "%", 100 * least / ms[name], target="ours >= 70", note=note)

    what = "a token of the small model"
    lines = [Line(f"{what}, default", unit, ms["default"], ms["transformers"], "transformers", "ours <= 25", dtype)]
    lines.append(share("default", total * default.dtype.itemsize))
    reference = None
    for name in [name for name in LOADED if name in chats]:
        if reference is None:
            inputs = context_of(chats["fp32"])
            reference = chats["fp32"].model.llama_model(inputs_embeds=inputs).logits
        quantized = chats[name].model.llama_model
        logits = quantized(inputs_embeds=inputs.to(quantized.dtype)).logits.float()
        note = f"logits differ by {(logits - reference).norm() / reference.norm():.1%}"
        least = {"8 bit": 2, "4 bit": 2.5}[name]
        lines.append(Line(f"{what}, {name}", unit, ms[name], ms["fp32"], "fp32", f"ratio >= {least}", note))
        lines.append(share(name, linear * LOADED[name][2] + (total - linear) * quantized.dtype.itemsize))
    return lines


def later_turns(setting: Setting) -> list[Line]:
    """The first token of turn 2 and of turn 5, against reading the whole conversation again."""
    chat, lines, words = sizes.small_chat(setting), [], 4 if setting.quick else 40
    again = Chat(chat.model, chat.vis_processor, chat.template, reuse_cache=False)
    greedy = {"do_sample": False, "min_length": words + 1, "max_new_tokens": words}
    for turn in (2,) if setting.quick else (2, 5):
        past = asked(chat)
        for number in range(2, turn):
            chat.answer(past, **greedy)
            chat.ask(f"What else do you see at place {number}?", past)

        answer = chat.answer(ChatState(past.template, [*map(copy.copy, past.turns)]), **greedy)[0]

        def first_token(talk: Chat, past: ChatState = past, answer: str = answer) -> float:
            """Of the next turn. Ours answers the one before it again, so that its cache holds what it would hold."""
            conv = ChatState(past.template, [*map(copy.copy, past.turns)])
            conv.turns[-1].answer = talk.answer(conv, **greedy)[0] if talk is chat else answer
            talk.ask("Is there anything unusual in it?", conv)
            start = setting.clock()
            talk.answer(conv, do_sample=False, max_new_tokens=1)
            return setting.clock() - start

        best = setting.alternate({"ours": lambda: first_token(chat), "again": lambda: first_token(again)})
        ms = {name: 1000 * seconds for name, seconds in best.items()}
        what, unit = f"first token of turn {turn}, small model", f"m{setting.unit}"
        lines.append(Line(what, unit, ms["ours"], ms["again"], "reading all again", "ratio >= 5"))
    return lines


@torch.no_grad()
def folder(setting: Setting) -> list[Line]:
    """Captions of a folder in one batch: against one by one, and size S against transformers' generate."""
    count, tokens, lines = (2, 3, []) if setting.quick else (16, 16, [])
    chat = sizes.small_chat(setting, "model.llama_precision=fp32")
    greedy = {"do_sample": False, "max_new_tokens": tokens}
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, f"{i}.jpg") for i in range(count)]
        for i, file in enumerate(files):
            file.write_bytes(photo(i).getvalue())
        answers: dict[str, list[str]] = {}

        def one_by_one() -> None:
            answers["one"] = [chat.answer_batch([file], QUESTION, **greedy)[0] for file in files]

        def batched() -> None:
            answers["batch"] = chat.answer_batch(files, QUESTION, **greedy)

        best = setting.alternate({"one": one_by_one, "batch": batched})
    same = sum(a == b for a, b in zip(answers["one"], answers["batch"], strict=True))
    note = f"{count} photos, {tokens} tokens each; {same} of {count} answers are the same"
    what, unit = "captions of a folder, small model, fp32", f"images/{setting.unit}"
    lines.append(Line(what, unit, count / best["batch"], count / best["one"], "one by one", "ratio >= 4", note))

    model = SizeS(setting)
    ours, blip2 = Chat(model, lambda image: image), sizes.blip2_of(model)
    side = model.config.image_size
    pictures = torch.randn(count, 3, side, side)
    parts = model.segment_ids(ChatState(ours.template, [Turn(QUESTION, [pictures[0]])]).segments(ours.as_text))
    image = torch.full((sizes.QUERIES,), model.vocabulary - 1)
    ids = torch.cat([image if isinstance(part, Tensor) else torch.tensor(part) for part in parts])
    inputs = {"input_ids": ids.expand(count, -1), "attention_mask": torch.ones(count, len(ids), dtype=torch.long)}
    options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": sizes.PAD}
    best = setting.alternate({
        "ours": lambda: ours.answer_batch(list(pictures), QUESTION, min_length=tokens + 1, **greedy),
        "transformers": lambda: blip2.generate(pixel_values=pictures, **inputs, **options),
    })  # fmt: skip
    what = "captions of a batch, size S, fp32"
    rates = {name: count / seconds for name, seconds in best.items()}
    return [*lines, Line(what, unit, rates["ours"], rates["transformers"], "transformers", "ratio >= 1.5")]


def start(setting: Setting) -> list[Line]:
    """CPU seconds of whole processes, with what they need from the disk in memory."""
    with tempfile.TemporaryDirectory() as place:
        picture = Path(place, "photo.jpg")
        picture.write_bytes(photo().getvalue())
        commands = {
            "help": ["-m", "minigpt4.cli", "--help"],
            "python": ["-c", "import argparse"],
            "describe": ["-m", "minigpt4.cli", "describe", str(picture), "--greedy", "--max-new-tokens", "30"],
            "libraries": ["-c", "import torch, torchvision, timm, transformers.models.llama.modeling_llama"],
        }
        if setting.quick:
            commands = {"help": commands["help"], "python": commands["python"]}
        best = setting.alternate({name: lambda c=command: cpu_seconds(c) for name, command in commands.items()})
    lines = [Line("minigpt4 --help", "s CPU", best["help"], best["python"], "python alone", "ours <= 0.3")]
    if "describe" in best:
        line = Line("minigpt4 describe of a photo, 30 tokens", "s CPU", best["describe"], best["libraries"])
        line.against, line.target = "importing the libraries", "ours <= 4"
        lines.append(line)
    return lines


def cpu_seconds(arguments: list[str]) -> float:
    """Of a Python process with one thread, and of those that it started."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, *arguments]
    child = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(code)  # it was waited for
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return used.ru_utime + used.ru_stime
