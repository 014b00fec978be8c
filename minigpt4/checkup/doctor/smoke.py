"""The smoke generation: build the model and ask one question about a made picture, within a time limit.

It runs in a process of its own, which can be ended at the limit whatever it does, and may run out of memory.
"""

import json
import re
import signal
import subprocess
import sys
import time

import torch
from PIL import Image

from ...common.config import read_config
from ...common.errors import CheckpointError, UserError
from ...common.schema import Config
from ...serve import build_chat
from .context import LOOK, OK, WRONG, Finding

QUESTION = "What colour is this picture? Answer in one sentence."
COLOUR = (200, 30, 30)
RED = re.compile(r"\b(red|reddish|crimson|scarlet|maroon|rot|rouge|rojo|roja)\b|红|紅", re.I)
NEW_TOKENS = 40


def check_answer(config: Config, options: list[str], device: torch.device, seconds: float) -> Finding:
    """The model answers a question about a red picture."""
    command = [sys.executable, "-m", __name__, config.path, str(device), *options]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        do = "give it longer with --seconds 600, or skip it with --no-generate"
        return Finding(LOOK, f"stopped at the limit of {seconds:g} s; nothing is known yet", do)
    if child.returncode == -signal.SIGKILL:
        do = "write model.low_resource: 8bit or 4bit, or take a machine with more memory"
        return Finding(WRONG, "the system ended it, as it does when memory runs out", do)
    if child.returncode:
        return Finding(WRONG, (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1])
    return judge(json.loads(child.stdout.splitlines()[-1]), trained=bool(config.model.ckpt))


def answer(cfg_path: str, options: list[str], device: str) -> dict:
    """Build and ask -> the text, its tokens, and the seconds of both."""
    began = time.monotonic()
    config, _ = read_config(cfg_path, options, mode="show")
    torch.manual_seed(0)  # what no file brings is random
    chat = build_chat(config, torch.device(device))
    built = time.monotonic()
    conv = chat.new_conversation()
    chat.upload_img(Image.new("RGB", (config.model.image_size,) * 2, COLOUR), conv)
    if not torch.isfinite(conv.pending[0]).all():
        raise CheckpointError("what the LLM would see of the picture is NaN or infinity: a vision file is damaged")
    chat.ask(QUESTION, conv)
    text, ids = chat.answer(conv, do_sample=False, max_new_tokens=NEW_TOKENS)
    return {"text": text, "tokens": len(ids), "built": built - began, "seconds": time.monotonic() - built}


def judge(answer: dict, trained: bool) -> Finding:
    """One finding from what `answer` returned.

    Args:
        trained: the config names a checkpoint; without one the projection is random, and the answer means nothing.
    """
    said = f"the model was built in {answer['built']:.0f} s; {answer['tokens']} tokens in {answer['seconds']:.1f} s. "
    said += f"Asked {QUESTION!r} about a red one:\n{answer['text']!r}\n"
    hit_limit = answer["tokens"] >= NEW_TOKENS
    if not trained:
        return Finding(OK, f"{said}without model.ckpt the projection is random: it runs, no more is known")
    if RED.search(answer["text"]) and not hit_limit:
        return Finding(OK, f"{said}it names the colour; no more was checked")
    ended = f"it did not come to an end in {NEW_TOKENS} tokens" if hit_limit else "it does not name the colour"
    why = f"{ended}; so do a model after stage 1 alone, a raw LLaMA, and an LLM asked in another's chat template"
    do = "ask it about your own pictures; if it is wrong there too: is the LLM the one that model.ckpt was trained for?"
    return Finding(LOOK, said + why, do)


if __name__ == "__main__":
    cfg_path, device, *options = sys.argv[1:]
    try:
        print(json.dumps(answer(cfg_path, options, device)))
    except UserError as error:
        sys.exit(str(error).replace("\n", " "))
