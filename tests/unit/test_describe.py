"""`minigpt4 describe` with names, terminals, pipes and questions as they come."""

import io
import json
import os
import sys
from types import SimpleNamespace

import pytest
from made import picture

from minigpt4 import cli, serve
from minigpt4.conversation.chat import Chat, ChatError, read_image
from minigpt4.serve import describe


class Talker:
    """Says of every picture the same, with a letter that ASCII lacks."""

    def new_conversation(self):
        return SimpleNamespace()

    def upload_img(self, image, conv):
        read_image(image)

    def ask(self, text, conv):
        pass

    def answer(self, conv, **decoding):
        return "un café", [1, 2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("a.png", encoding="ascii") -> (exit code, bytes of stdout)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "build_chat", lambda config, device: Talker())
    monkeypatch.setattr(describe, "load_config", lambda *a, **k: None)
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(picture())

    def run(*words, encoding="utf-8", to=None):
        raw = to or io.BytesIO()
        out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, "stdout", out)
        code = cli.main(["describe", *words])
        return code, b"" if to else raw.getvalue()

    return run


def test_a_name_that_is_not_utf_8(run):
    name = os.fsdecode(b"caf\xe9.png")
    with open(name, "wb") as file:
        file.write(picture())
    assert run(name, "a.png") == (0, "caf\\udce9.png\nun café\n\na.png\nun café\n\n".encode())
    code, out = run("--json", name)
    assert code == 0 and json.loads(out)["image"] == name


def test_a_terminal_that_knows_ascii_alone(run):
    assert run("a.png", encoding="ascii") == (0, b"un caf\\xe9\n")
    code, out = run("--json", "a.png", encoding="ascii")
    assert code == 0 and json.loads(out)["answer"] == "un café"


@pytest.mark.parametrize("buffering", [-1, 0])  # 0: as with PYTHONUNBUFFERED
def test_a_reader_that_stops_reading_is_no_error(buffering, run, capfd):
    """`minigpt4 describe *.png | head -1`"""
    reading, writing = os.pipe()
    os.close(reading)
    code, _ = run("a.png", "b.jpg", to=os.fdopen(writing, "wb", buffering))
    assert code == 141 and capfd.readouterr().err == ""


def test_the_chat_refuses_half_a_surrogate_pair(tiny_model):
    chat = Chat(tiny_model, None)
    with pytest.raises(ChatError, match="no valid Unicode text"):
        chat.ask("What \ud83d?", chat.new_conversation())


def test_a_folder_is_its_pictures(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    assert run(".")[1].decode().splitlines()[::3] == ["a.png", "b.jpg"]
    assert run("empty")[0] == 1
    assert "empty: no pictures in this folder (.jpg, .jpeg" in capsys.readouterr().err
