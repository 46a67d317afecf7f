"""The place of a server: a free port of the loopback interface, a directory of its own."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_directory(prefix: str) -> Path:
    """A new temporary directory, with a path short enough for a Unix socket."""
    return Path(tempfile.mkdtemp(prefix=prefix))
