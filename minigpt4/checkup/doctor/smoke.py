"""The smoke generation: build the model and ask one question about a made picture, within a time limit.

It runs in a process of its own, which can be ended at the limit whatever it does, and may run out of memory.
"""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import torch
from PIL import Image

from ...common.config import read_config
from ...common.errors import CheckpointError, UserError
from ...serve import build_chat
from .page import LOOK, OK, WRONG, Finding

QUESTION = "What colour is this picture? Answer in one sentence."
COLOUR = (200, 30, 30)
RED = re.compile(r"\b(red|reddish|crimson|scarlet|maroon|rot|rouge|rojo|roja)\b|红|紅", re.I)
NEW_TOKENS = 40
STARTING = 90  # seconds for Python and its imports, which are not the model's; a cold disk takes long


def check_answer(cfg_path: str, options: list[str], device: str, seconds: float, trained: bool) -> Finding:
    """The model answers a question about a red picture.

    Args:
        trained: the config names a checkpoint; without one the projection is random, and the answer means nothing.
    """
    return judge(watch(answer, (cfg_path, options, device), seconds), seconds, trained)


def answer(cfg_path: str, options: list[str], device: str) -> Iterator[tuple[str, object]]:
    """Build and ask; (what, value) for each thing that is done: start, built (seconds), text (so far), answer."""
    yield "start", None
    began = time.monotonic()
    config, _ = read_config(cfg_path, options, mode="show")
    torch.manual_seed(0)  # what no file brings is random
    chat = build_chat(config, torch.device(device))
    yield "built", time.monotonic() - began
    began = time.monotonic()
    conv = chat.new_conversation()
    chat.upload_img(Image.new("RGB", (config.model.image_size,) * 2, COLOUR), conv)
    if not torch.isfinite(conv.pending[0]).all():
        raise CheckpointError("what the LLM would see of the picture is NaN or infinity: a vision file is damaged")
    chat.ask(QUESTION, conv)
    text = ""
    for text in chat.stream_answer(conv, do_sample=False, max_new_tokens=NEW_TOKENS):
        yield "text", text
    tokens = len(chat.model.token_ids(text))  # counted from the text, where a blank at an end may be lost: hence the 1
    seconds = time.monotonic() - began
    yield "answer", {"text": text, "tokens": tokens, "seconds": seconds, "hit_limit": tokens >= NEW_TOKENS - 1}


def watch(steps: Callable[..., Iterator[tuple[str, object]]], arguments: tuple, seconds: float) -> dict[str, object]:
    """What `steps(*arguments)` yields in another process, until it ends or `seconds` after its "start".

    The last entry says how it ended: "limit", or "code" (the exit code), with "error" before it if one was raised.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(there, steps, arguments))
    child.start()
    there.close()
    seen, deadline = {}, time.monotonic() + STARTING
    try:
        while {"answer", "error"} & set(seen) or here.poll(max(deadline - time.monotonic(), 0)):
            what, value = here.recv()
            seen[what] = value
            if what == "start":
                deadline = time.monotonic() + seconds
        return {**seen, "limit": None}
    except EOFError:
        child.join()
        return {**seen, "code": child.exitcode}
    finally:
        child.kill()
        child.join()


def _send(there: Connection, steps: Callable[..., Iterator[tuple[str, object]]], arguments: tuple) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)  # what libraries print does not belong on the doctor's page
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        for step in steps(*arguments):
            there.send(step)
    except Exception as error:
        there.send(("error", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"))


def judge(seen: dict, seconds: float, trained: bool = True) -> Finding:
    """One finding from what `watch` saw."""
    built = f"the model was built in {seen['built']:.0f} s; " if "built" in seen else ""
    if "limit" in seen:
        while_at = "reading the picture and the question" if built else "the weights were being loaded"
        found = f"after: {seen['text']!r}" if "text" in seen else f"while {while_at}; nothing is known yet"
        do = "give it longer with --seconds 600, or skip it with --no-generate"
        return Finding(LOOK, f"{built}stopped at the limit of {seconds:g} s, {found}", do)
    if seen["code"] == -signal.SIGKILL:
        do = "write model.low_resource: 8bit or 4bit, or take a machine with more memory"
        return Finding(WRONG, f"{built}the system ended it, as it does when memory runs out", do)
    if "answer" not in seen:
        return Finding(WRONG, built + seen.get("error", f"exit code {seen['code']}"))
    answer = seen["answer"]
    said = f"{built}{answer['tokens']} tokens in {answer['seconds']:.1f} s. Asked {QUESTION!r} about a red one:\n"
    said += f"{answer['text']!r}\n"
    if not trained:
        return Finding(OK, f"{said}without model.ckpt the projection is random: it runs, no more is known")
    if RED.search(answer["text"]) and not answer["hit_limit"]:
        return Finding(OK, f"{said}it names the colour; no more was checked")
    ended = (
        f"it did not come to an end in {NEW_TOKENS} tokens" if answer["hit_limit"] else "it does not name the colour"
    )
    why = f"{ended}; so do a model after stage 1 alone, a raw LLaMA, and an LLM asked in another's chat template"
    do = "ask it about your own pictures; if it is wrong there too: is the LLM the one that model.ckpt was trained for?"
    return Finding(LOOK, said + why, do)
