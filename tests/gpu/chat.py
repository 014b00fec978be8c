"""Part 3: the chat at 13B in 16, 8 and 4 bit: time to the first token, tokens a second, memory, error of the logits.

The LLM's files have random fp16 weights, and `load_llm` reads them as it reads Vicuna's.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from minigpt4.checkup.plan.costs import Setup, next_token_work
from minigpt4.checkup.plan.shapes import Shapes
from minigpt4.common.gpus import roofline
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import VICUNA_V0
from minigpt4.models.llm import create_llm, load_tokenizer
from minigpt4.models.llm_loading import load_llm

from .full import card_of, fill, free_memory, llm_config, random_model, read_config
from .setting import GIB, GOLDEN, NotRun, Setting, relative_error, synchronize

BITS = {"16 bit": False, "8 bit": "8bit", "4 bit": "4bit"}
MOST_ERROR = {"8 bit": 0.1, "4 bit": 0.6}  # relative, of the logits of a deep LLM of random weights
ROOM = 30 * GIB  # the files take 24
FEW_LAYERS = 8  # where the files must go to a disk, which takes a second for each GB


def measurements(setting: Setting) -> dict[str, Callable[[], dict]]:
    bench = Bench(setting)
    return {"write the files": bench.write, **{bits: partial(bench.measure, bits) for bits in BITS}}


class Bench:
    """One random LLM on disk, and one vision side that every precision of it is put behind."""

    def __init__(self, setting: Setting):
        self.setting, self.device = setting, setting.device
        self.files, self.logits, self.model = setting.folder / "llm", None, None
        self.tokens = 8 if setting.small else 48

    def write(self) -> dict:
        """All 40 layers where main memory has room for the files, which `load_llm` maps from there."""
        start, whole, layers = time.monotonic(), llm_config(self.setting), None
        if self.setting.cuda and not self.setting.small:
            memory = self.setting.memory_folder
            if memory and shutil.disk_usage(memory.parent).free > ROOM and psutil.virtual_memory().available > 2 * ROOM:
                self.files = memory
            else:
                layers = FEW_LAYERS
        dtype = torch.float16 if self.setting.cuda else torch.float32
        self.llm_config = llm_config(self.setting, layers)
        llm = create_llm(self.llm_config, dtype)
        fill(llm, self.device)
        self.files.mkdir()
        for file in (GOLDEN / "a" / "tokenizer").iterdir():
            if "config.json" not in file.name or file.name == "tokenizer_config.json":
                shutil.copy(file, self.files / file.name)
        vocabulary = len(load_tokenizer_of(self.files, self.llm_config))
        with torch.no_grad():  # ids that the tokenizer has no piece for, and those that end an answer, are never likely
            llm.lm_head.weight[vocabulary:] = 0
            llm.lm_head.weight[:3] = 0
        llm.save_pretrained(self.files, max_shard_size="4GB")
        return {
            "layers": self.llm_config.num_hidden_layers,
            "of": whole.num_hidden_layers,
            "seconds": round(time.monotonic() - start, 1),
        }

    def measure(self, bits: str) -> dict:
        setting, device = self.setting, self.device
        library = "torchao" if bits == "8 bit" and not setting.cuda else "bitsandbytes"
        if bits != "16 bit" and find_spec(library) is None:
            raise NotRun(f"{library} is not installed")
        options = ("model.low_resource=False", "datasets.cc_sbu_align.build_info.storage=null")
        config = read_config(setting, "chat", *options)
        if self.model is None:
            self.model = random_model(setting, config, self.llm_config, training=False)
            self.model.tokenizer = load_tokenizer(str(self.files))
        self.model.llama_model = None
        free_memory(device)
        before, start = _allocated(device), time.monotonic()
        dtype = torch.float16 if setting.cuda else torch.float32
        attention = "sdpa" if setting.cuda else "eager"
        llm = load_llm(str(self.files), dtype, device, low_resource=BITS[bits], attn_implementation=attention)
        synchronize(device)
        values = {"load_seconds": round(time.monotonic() - start, 1)}
        values["weights_gib"] = round((_allocated(device) - before) / GIB, 2)
        values |= self._error(bits, llm)
        self.model.llama_model = llm
        values |= self._turns()
        if setting.cuda:
            values["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
        return values | self._planned(bits, config, values)

    @torch.no_grad()
    def _error(self, bits: str, llm) -> dict:
        """The relative error of the logits of 64 given tokens, against 16 bit."""
        ids = torch.randint(3, 200, (1, 64), generator=torch.Generator().manual_seed(0)).to(self.device)
        logits = llm(input_ids=ids).logits.float().cpu()
        if bits == "16 bit":
            self.logits = logits
            return {}
        if self.logits is None:
            return {"note": "16 bit failed: nothing to compare the logits with"}
        error = relative_error(logits, self.logits)
        wrong = {} if error <= MOST_ERROR[bits] else {"wrong": f"the logits' error is above {MOST_ERROR[bits]}"}
        return {"logits_error": round(error, 4)} | wrong

    def _turns(self) -> dict:
        """Two turns about one picture, after a warm-up."""
        chat = Chat(self.model, None, replace(VICUNA_V0, stop=()))
        size = self.model.config.image_size
        pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        self._answer(chat, chat.new_conversation(), pictures[0], 4)
        chat.cache.clear()
        if self.setting.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        conv, values = chat.new_conversation(), {}
        for turn, picture in enumerate((pictures[1], None), start=1):
            first, rate = self._answer(chat, conv, picture, self.tokens)
            values |= {f"turn{turn}_first_token_s": round(first, 3), f"turn{turn}_tokens_per_second": round(rate, 2)}
        return values

    def _answer(self, chat: Chat, conv, picture: torch.Tensor | None, tokens: int) -> tuple[float, float]:
        """Seconds until a reader sees the first text (a picture is encoded before), and tokens a second after it."""
        synchronize(self.device)
        start, first = time.monotonic(), None
        if picture is not None:
            chat.upload_img(picture, conv)
        chat.ask("What is in this picture?", conv)
        for _ in chat.stream_answer(conv, do_sample=False, max_new_tokens=tokens, min_length=tokens + 1):
            first = first or time.monotonic()
        end = time.monotonic()
        return first - start, (tokens - 1) / max(end - first, 1e-9)

    def _planned(self, bits: str, config, values: dict) -> dict:
        gpu = card_of(self.setting)
        if gpu is None:
            return {"note": "the planner does not know this card"}
        config = replace(config, model=replace(config.model, low_resource=BITS[bits]))
        setup = Setup(config, Shapes(config.model, self.llm_config), gpu)
        found = {"planned_weights_gib": round(setup.weights("llama_model") / GIB, 2)}
        if bits == "16 bit":
            speed = 1 / roofline(next_token_work(setup), gpu)
            found["planned_tokens_per_second"] = round(speed, 1)
            found["speed_measured_by_planned"] = round(values["turn1_tokens_per_second"] / speed, 3)
        return found


def load_tokenizer_of(folder: Path, config):
    """The tokenizer alone: its folder gets the config.json that names the LLM."""
    config.save_pretrained(folder)
    return load_tokenizer(str(folder))


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
