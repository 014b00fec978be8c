"""The doctor's smoke generation: build the model, ask one question about a made picture, within a time limit.

It runs in a process of its own, which can be ended at the limit whatever it is doing, and whose end by lack of memory
is only one more thing to tell. `python -m minigpt4.checkup.doctor.smoke REQUEST` is that process; it writes JSON lines.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .page import LOOK, OK, WRONG, Row

SECTION = "Smoke generation"
QUESTION = "What colour is this picture? Answer in one sentence."
COLOUR = (200, 30, 30)
RED = re.compile(r"\b(red|reddish|crimson|scarlet|maroon|rot|rouge|rojo|roja)\b|红|紅", re.I)
NEW_TOKENS = 40
STARTING = 90  # seconds for Python and its imports, which are not the model's; a cold disk takes long


def smoke(cfg_path: str, options: list[str], device: str, seconds: float, trained: bool) -> Row:
    """Ask, and judge how it went.

    Args:
        trained: the config names a checkpoint; without one the projection is random, and the answer means nothing.
    """
    request = json.dumps({"cfg_path": cfg_path, "options": options, "device": device})
    command = [sys.executable, "-m", "minigpt4.checkup.doctor.smoke", request]
    return judge(watch(command, seconds), seconds, trained)


def watch(command: list[str], seconds: float) -> list[dict]:
    """The JSON lines that `command` wrote, until it ended or `seconds` after its line {"at": "start"}.

    The last one says how it ended: {"at": "limit"} or {"at": "end", "code": exit code, "error": last line of stderr}.
    """
    root = Path(__file__).resolve().parents[2]  # `minigpt4` may be imported from the clone, not installed
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    lines: queue.SimpleQueue = queue.SimpleQueue()
    errors: list[str] = []
    threading.Thread(target=lambda: [*map(lines.put, child.stdout), lines.put(None)], daemon=True).start()
    reader = threading.Thread(target=lambda: errors.extend(child.stderr), daemon=True)
    reader.start()
    found, deadline = [], time.monotonic() + STARTING
    try:
        while (line := lines.get(timeout=max(deadline - time.monotonic(), 0.01))) is not None:
            if not line.startswith("{"):
                continue
            found.append(json.loads(line))
            if found[-1]["at"] == "start":
                deadline = time.monotonic() + seconds
    except queue.Empty:
        return [*found, {"at": "limit"}]
    else:
        code = child.wait()
        reader.join(timeout=5)
        last = next((e.strip() for e in reversed(errors) if e.strip()), "")
        return [*found, {"at": "end", "code": code, "error": last}]
    finally:
        child.kill()
        child.wait()


def judge(lines: list[dict], seconds: float, trained: bool = True) -> Row:
    """One row of what `watch` saw."""
    seen = {line["at"]: line for line in lines}
    built = f"the model was built in {seen['built']['seconds']:.0f} s" if "built" in seen else ""
    text = seen["text"]["text"] if "text" in seen else ""
    longer = "give it longer with --seconds 600, or skip it with --no-generate"

    def row(mark: str, said: str, do: str = "") -> Row:
        return Row(SECTION, mark, "answer", f"{built}; {said}" if built else said, do)

    if "limit" in seen:
        if text:
            return row(LOOK, f"stopped at the limit of {seconds:g} s, after: {text!r}", longer)
        while_at = "reading the picture and the question" if built else "the weights were being loaded"
        return row(LOOK, f"stopped at the limit of {seconds:g} s, while {while_at}; nothing is known yet", longer)
    if seen["end"]["code"] == -signal.SIGKILL:
        return row(WRONG, "the system ended it, as it does when memory runs out",
                   "write model.low_resource: 8bit or 4bit, or take a machine with more memory")  # fmt: skip
    if "answer" not in seen:
        return row(WRONG, seen.get("error", seen["end"]).get("error") or f"exit code {seen['end']['code']}")
    if not trained:
        return row(
            OK, f"{_said(seen['answer'])}\nwithout model.ckpt the projection is random: it runs, no more is known"
        )
    return _judge_answer(seen["answer"], row)


def _said(answer: dict) -> str:
    how_long = f"{answer['tokens']} tokens in {answer['seconds']:.1f} s"
    return f"{how_long}. Asked {QUESTION!r} about a red one:\n{answer['text']!r}"


def _judge_answer(answer: dict, row) -> Row:
    text, said = answer["text"], _said(answer)
    other = "is the LLM the one that the checkpoint was trained for?"
    broken = "\ufffd" in text.rstrip("\ufffd")  # at the end the limit may have cut a character
    if broken or not any(c.isalnum() for c in text):
        return row(LOOK, f"{said}\n{'bytes that are no text' if broken else 'no words'}", other)
    if answer["hit_limit"]:
        words = text.split()
        repeats = len(words) > 8 and len(set(words)) < len(words) / 2
        more = "it repeats itself" if repeats else "it did not come to an end"
        like = "so do a model after stage 1 alone, a raw LLaMA, and an LLM asked in another's chat template"
        return row(LOOK, f"{said}\n{more} in {NEW_TOKENS} tokens; {like}", f"is it about the picture? If not: {other}")
    if not RED.search(text):
        return row(LOOK, f"{said}\nit does not say that the picture is red: it runs, but whether it sees is not known",
                   f"ask it about pictures of your own; if it is wrong there too: {other}")  # fmt: skip
    return row(OK, f"{said}\nit names the colour; no more was checked")


# -- the process that answers -----------------------------------------------------------------------------------------


def answer(cfg_path: str, options: list[str], device: str) -> Iterator[dict]:
    """Build and ask; a dict for each thing that is done: start, built, text (as it grows), answer."""
    import torch
    from PIL import Image

    from ...common.config import read_config
    from ...common.errors import CheckpointError
    from ...serve import build_chat

    yield {"at": "start"}
    began = time.monotonic()
    config, _ = read_config(cfg_path, options, mode="show")
    torch.manual_seed(0)  # what no file brings is random
    chat = build_chat(config, torch.device(device))
    yield {"at": "built", "seconds": time.monotonic() - began}
    began = time.monotonic()
    conv = chat.new_conversation()
    chat.upload_img(Image.new("RGB", (config.model.image_size,) * 2, COLOUR), conv)
    if not torch.isfinite(conv.pending[0]).all():
        raise CheckpointError("what the LLM would see of the picture is NaN or infinity: a vision file is damaged")
    chat.ask(QUESTION, conv)
    text = ""
    for text in chat.stream_answer(conv, do_sample=False, max_new_tokens=NEW_TOKENS):
        yield {"at": "text", "text": text}
    tokens = len(chat.model.token_ids(text))  # counted from the text, where a blank at an end may be lost: hence the 1
    yield {"at": "answer", "text": text, "tokens": tokens, "seconds": time.monotonic() - began,
           "hit_limit": tokens >= NEW_TOKENS - 1}  # fmt: skip


def main(request: str) -> int:
    from ...common.errors import UserError

    try:
        for line in answer(**json.loads(request)):
            print(json.dumps(line), flush=True)
    except UserError as error:
        print(json.dumps({"at": "error", "error": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
