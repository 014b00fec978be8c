"""What stops the chat page is told before the model is loaded; what need not stop it does not."""

import errno
import os
import socket
from pathlib import Path

import pytest

import demo
from minigpt4.common.errors import UserError
from minigpt4.conversation.chat import Chat
from minigpt4.serve import app as serve_app
from minigpt4.serve import start


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
        (["--host", "a..b"], "--host a..b: cannot be resolved"),
        (["--host", "http://localhost"], "--host http://localhost: cannot be resolved"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: this machine cannot listen on 192.0.2.1"),
        (["--host", "2001:db8::1"], "--host 2001:db8::1: this machine cannot listen on 2001:db8::1"),
        (["--port", 70000], "--port 70000: there is no such port; write one from 1024 to 65535"),
        (["--port", -1], "--port -1: there is no such port"),
    ],
)
def test_an_address_that_cannot_be_had(options, message):
    assert refusal(*options).startswith(message)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_taken_port(taken, host, monkeypatch):
    assert refusal("--host", host, "--port", taken).startswith(f"--port {taken}: is taken by another program")
    monkeypatch.setattr(start, "PORTS", range(taken, taken + 1))
    assert refusal("--host", host).startswith(f"the ports {taken} to {taken} are all taken")
    monkeypatch.setattr(start, "PORTS", [taken, 0])
    assert start.find_address(host, None)[1] not in (taken, 0)


def test_a_port_of_root(monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(start, "_bind", denied)
    assert refusal("--port", 80) == "--port 80: this user may not open it; write one from 1024 on"


@pytest.mark.parametrize("name", ["GRADIO_TEMP_DIR", "TMPDIR"])
def test_no_folder_for_uploads(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "file/folder"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file/folder") if name == "TMPDIR" else None)
    assert "set GRADIO_TEMP_DIR to a folder of yours" in refusal()


def test_uploads_lie_in_a_folder_of_this_process(tmp_path, monkeypatch):
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
def test_the_page_opens_whatever_the_proxies(tiny_model, monkeypatch, environment, host):
    if ":" in host:
        try:
            start._bind(socket.AF_INET6, "::1", 0)
        except OSError:
            pytest.skip("no IPv6 here")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = os.environ.get("no_proxy")
    app = serve_app.build_app(Chat(tiny_model, None))
    address = serve_app.launch(app, host, block=False)
    app.close()
    assert address.startswith({"0.0.0.0": "http://localhost:", "localhost": "http://127.0.0.1:"}.get(
        host, f"http://[{host.strip('[]')}]:" if ":" in host else f"http://{host}:"))  # fmt: skip
    assert os.environ.get("no_proxy") == before


def test_with_a_public_link_only_this_machine_is_spared_the_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet")
    with start.no_proxy(share=True):
        assert os.environ["no_proxy"] == "intranet,localhost,127.0.0.1,::1"
    assert "no_proxy" not in os.environ


def test_where_the_page_listens_is_not_said_by_gradios_variables():
    from gradio import http_server

    assert {name: os.environ[name] for name in start.GRADIO} == start.GRADIO
    assert (http_server.LOCALHOST_NAME, http_server.INITIAL_PORT_VALUE) == ("127.0.0.1", 7860)
