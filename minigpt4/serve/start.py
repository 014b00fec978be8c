"""What the page needs of the machine: an address and a folder for uploads.

gradio is not imported here, so that both can be checked before the model is loaded.
"""

import atexit
import errno
import os
import shutil
import socket
import tempfile
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
    Raises UserError: there is no such host or port here, or it is taken."""
    for candidate in PORTS if port is None else [port]:
        try:
            found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
            family, *_, (ip, *_) = min(found, key=lambda one: one[0] != socket.AF_INET)  # IPv4 where a name has both
            with socket.create_server((ip, candidate), family=family) as server:
                free = server.getsockname()[1]
            with socket.create_server(("127.0.0.1", free)):  # gradio tries it too, whatever the host is
                return ip, free
        except (OSError, OverflowError, UnicodeError) as error:
            reason = error
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                break
    raise UserError(
        f"--host {host}{'' if port is None else f' --port {port}'}: the page cannot listen there ({reason}); write "
        "127.0.0.1 (for this machine alone) or 0.0.0.0 (for all its networks), and a free port from 1024 to 65535"
    )


def prepare_uploads() -> None:
    """Make a folder for uploads that this process alone has, unless GRADIO_TEMP_DIR names one. gradio's own,
    /tmp/gradio, belongs to the user who came first. Raises UserError where nothing can be written."""
    try:
        if folder := os.environ.get("GRADIO_TEMP_DIR"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        else:
            os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="minigpt4-uploads-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"uploads need a folder that can be written to: {error}; set GRADIO_TEMP_DIR to a folder of yours"
        ) from None
