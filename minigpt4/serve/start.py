"""What the page needs of the machine: an address, a folder for uploads, and a way to itself past proxies.

gradio is not imported here, so that all of it can be checked before the model is loaded.
"""

import atexit
import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import UserError

PORTS = range(7860, 7960)  # tried in turn without --port
# For the environment, before gradio is imported. The command line alone says where the page listens.
GRADIO = {
    "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": "7860",
    "GRADIO_NUM_PORTS": "1", "GRADIO_ALLOWED_PATHS": "",
}  # fmt: skip


def find_address(host: str, port: int | None) -> tuple[str, int]:
    """(IP address, port) that the page can listen on. `port` None takes the first free one of PORTS; 0 any free one.

    Raises:
        UserError: there is no such host or port here, or it is taken.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: cannot be resolved ({error}); write an address of this machine") from None
    family, *_, (ip, *_) = min(found, key=lambda one: one[0] != socket.AF_INET)  # IPv4 where a name has both
    for candidate in PORTS if port is None else [port]:
        try:
            free = _bind(family, ip, candidate)
            _bind(socket.AF_INET, "127.0.0.1", free)  # gradio tries it too, whatever the host is
            return ip, free
        except OverflowError:
            raise UserError(f"--port {port}: there is no such port; write one from 1024 to 65535") from None
        except OSError as error:
            if error.errno == errno.EACCES:
                raise UserError(f"--port {port}: this user may not open it; write one from 1024 on") from None
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"--host {host}: this machine cannot listen on {ip} ({error.strerror}); write 127.0.0.1 (for this "
                    "machine alone) or 0.0.0.0 (for all its networks)"
                ) from None
    if port is None:
        raise UserError(f"the ports {PORTS[0]} to {PORTS[-1]} are all taken; write a free one as --port")
    raise UserError(f"--port {port}: is taken by another program; write another, or leave --port out")


def _bind(family: int, ip: str, port: int) -> int:
    """Try a port, and return its number. Raises OSError."""
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tried.bind((ip, port))
        return tried.getsockname()[1]


def prepare_uploads() -> None:
    """A folder for uploads that this process alone has, unless GRADIO_TEMP_DIR names one. gradio's own, /tmp/gradio,
    belongs to the user who came first.

    Raises:
        UserError: there is no folder that can be written to.
    """
    folder = os.environ.get("GRADIO_TEMP_DIR")
    try:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        else:
            os.environ["GRADIO_TEMP_DIR"] = made = tempfile.mkdtemp(prefix="minigpt4-uploads-")
            atexit.register(shutil.rmtree, made, ignore_errors=True)
    except OSError as error:
        what = f"GRADIO_TEMP_DIR ({folder})" if folder else "the system's folder for temporary files"
        raise UserError(
            f"uploads need a folder, but {what} cannot be written to: {error.strerror}; "
            "set GRADIO_TEMP_DIR to a folder of yours"
        ) from None


@contextmanager
def no_proxy(share: bool) -> Iterator[None]:
    """The page asks itself whether it is up: that must not go through a proxy. With `share`, gradio's servers may."""
    own = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    here = "localhost,127.0.0.1,::1"
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = ",".join(filter(None, (own, here))) if share else "*"
    try:
        yield
    finally:
        os.environ.pop("no_proxy")
        if before is not None:
            os.environ["no_proxy"] = before
