"""Made data for tests: pictures, shards, and a processor that is easy to check."""

import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch
import webdataset as wds
from PIL import Image


def picture(grey: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, samples) -> str:
    """samples: dicts of member suffix -> bytes."""
    with wds.TarWriter(str(path)) as tar:
        for i, sample in enumerate(samples):
            tar.write({"__key__": f"{i:05}", **sample})
    return str(path)


def good(caption: str, grey: int = 0) -> dict:
    return {"png": picture(grey), "json": json.dumps({"caption": caption}).encode()}


def noisy(image: Image.Image) -> torch.Tensor:
    """A processor that draws from torch's RNG, as the random crop does."""
    return torch.stack([torch.tensor(float(image.getpixel((0, 0))[0])), torch.rand(()), torch.rand(())])[:, None, None]


def take(iterable, n: int) -> list:
    return list(itertools.islice(iterable, n))


def loss_and_gradient(model, samples) -> tuple[float, torch.Tensor]:
    """The loss of a batch, and its gradient at the projection's weight."""
    model.zero_grad()
    loss = model(samples)["loss"]
    loss.backward()
    return loss.item(), model.llama_proj.weight.grad.clone()


class Evil:
    """What a malicious pickle holds: unpickled, it touches `trace`."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def damaged_avif() -> bytes:
    """An AVIF whose pixels cannot be decoded: PIL raises a RuntimeError, of which its documentation says nothing."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, "AVIF")
    content = buffer.getvalue()
    start = content.index(b"mdat") + 4
    return content[:start] + b"\xff" * 40 + content[start + 40 :]


def put(data: dict, dotted: str, value):
    """Set `a.b.c` of nested dicts."""
    *path, last = dotted.split(".")
    for key in path:
        data = data.setdefault(key, {})
    data[last] = value


class Requests(list):
    """The bodies of the requests that a server got; `reply` is what it sends instead of an answer."""

    reply = None


@contextmanager
def openai_server(answer: Callable) -> Iterator[tuple[str, Requests]]:
    """(URL, requests) of an OpenAI-compatible server: `answer` makes its text of a message's content."""
    requests = Requests()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body)
            message = {"role": "assistant", "content": answer(body["messages"][0]["content"])}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                     "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
            data = json.dumps(reply if requests.reply is None else requests.reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", requests
    finally:
        http.shutdown()
        http.server_close()
