"""What stops the chat page is told before the model is loaded; what need not stop it does not."""

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

import demo
from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import Chat
from minigpt4.conversation.prompts import EXAMPLE_QUESTIONS
from minigpt4.serve import start


@pytest.fixture(scope="module")
def serve_app():
    """The page's module. gradio is imported here, in one of pytest-xdist's processes."""
    from minigpt4.serve import app

    return app


@pytest.fixture
def taken():
    """A port on which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refusal(*options) -> str:
    with pytest.raises(UserError) as caught:
        demo.main(["--device", "cpu", "--cfg-path", "is/not/read/yet.yaml", *map(str, options)])
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "a..b"], "--host a..b: the page cannot listen there"),
        (["--host", "http://localhost"], "--host http://localhost: the page cannot listen there"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: the page cannot listen there"),
        (["--host", "2001:db8::1"], "--host 2001:db8::1: the page cannot listen there"),
        (["--port", 70000], "--host 127.0.0.1 --port 70000: the page cannot listen there"),
        (["--port", -1], "--host 127.0.0.1 --port -1: the page cannot listen there"),
    ],
)
def test_an_address_that_cannot_be_had(options, message):
    assert refusal(*options).startswith(message)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_taken_port(taken, host, monkeypatch):
    told = refusal("--host", host, "--port", taken)
    assert f"--port {taken}: the page cannot listen there" in told and "Address already in use" in told
    monkeypatch.setattr(start, "PORTS", range(taken, taken + 1))
    assert "Address already in use" in refusal("--host", host)
    monkeypatch.setattr(start, "PORTS", [taken, 0])
    assert start.find_address(host, None)[1] not in (taken, 0)


def test_a_port_of_root(monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", denied)
    told = refusal("--port", 80)
    assert "Permission denied" in told and "a free port from 1024 to 65535" in told


@pytest.mark.parametrize("name", ["GRADIO_TEMP_DIR", "TMPDIR"])
def test_no_folder_for_uploads(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "file/folder"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file/folder") if name == "TMPDIR" else None)
    assert "set GRADIO_TEMP_DIR to a folder of yours" in refusal()


def test_uploads_lie_in_a_folder_of_this_process(serve_app, tmp_path, monkeypatch):
    (tmp_path / "gradio").mkdir(mode=0o500)  # gradio's own folder, made by somebody else
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start.prepare_uploads()
    folder = Path(serve_app.get_upload_folder())
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))  # so that it is put back
    assert folder.parent == tmp_path and folder.name.startswith("minigpt4-uploads-")
    assert folder.stat().st_mode & 0o777 == 0o700


PROXY = "http://127.0.0.1:9"  # nobody answers there


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ({"http_proxy": PROXY}, "127.0.0.1"),
        ({"HTTP_PROXY": PROXY, "no_proxy": "intranet"}, "0.0.0.0"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "127.0.0.1"),
        ({"http_proxy": "nonsense://proxy"}, "localhost"),
        ({}, "::1"),
        ({"http_proxy": PROXY}, "[::1]"),
    ],
)
def test_the_page_opens_whatever_the_proxies(serve_app, tiny_model, monkeypatch, environment, host):
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
    for name, value in {"no_proxy": "", **environment}.items():
        monkeypatch.setenv(name, value)
    app = serve_app.build_app(Chat(tiny_model, None))
    address = serve_app.launch(app, host, block=False)
    app.close()
    assert address.startswith({"0.0.0.0": "http://localhost:", "localhost": "http://127.0.0.1:"}.get(
        host, f"http://[{host.strip('[]')}]:" if ":" in host else f"http://{host}:"))  # fmt: skip


def test_with_a_public_link_only_this_machine_is_spared_the_proxy(serve_app, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "intranet")
    app = SimpleNamespace(launch=lambda **options: (None, os.environ["no_proxy"], None))
    assert serve_app.launch(app, share=True) == "intranet,localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("questions", "shown"),
    [(None, list(EXAMPLE_QUESTIONS)), (["What is it?", "Why?"], ["What is it?", "Why?"]), ([], [])],
)
def test_the_page_offers_the_configs_questions(serve_app, tiny_model, questions, shown):
    app = serve_app.build_app(Chat(tiny_model, None), questions=questions)
    buttons = [c["props"]["value"] for c in app.get_config_file()["components"] if c["type"] == "button"]
    assert [text for text in buttons if text not in ("Restart", "Send", "Stop")] == shown


def test_the_demo_hands_the_configs_questions_to_the_page(serve_app, tiny_model, monkeypatch):
    offered = []
    monkeypatch.setattr("minigpt4.serve.build_chat", lambda config, device: Chat(tiny_model, None))
    monkeypatch.setattr(serve_app, "build_app", lambda chat, **options: offered.extend(options["questions"]))
    monkeypatch.setattr(serve_app, "launch", lambda *_: None)
    there = ["model.vit_ckpt=README.md", "model.llama_model=checkpoints/tiny"]  # not read here
    options = ["model.example_questions=[What is it?, Why?]", *there]
    demo.main(["--device", "cpu", "--cfg-path", "eval_configs/tiny_eval.yaml", "--options", *options])
    assert offered == ["What is it?", "Why?"]


def test_where_the_page_listens_is_not_said_by_gradios_variables(serve_app):
    from gradio import http_server

    assert {name: os.environ[name] for name in start.GRADIO} == start.GRADIO
    assert (http_server.LOCALHOST_NAME, http_server.INITIAL_PORT_VALUE) == ("127.0.0.1", 7860)
