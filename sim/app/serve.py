"""The page behind a socket of the loopback, until the caller is interrupted."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.app.door import HOST
from sim.app.runs import ABANDONED_S, Runs

__all__ = ["listening"]


@contextmanager
def listening(port: int, folder: Path, abandoned_s: float = ABANDONED_S) -> Iterator[tuple[str, Any]]:
    """The page's address and its server (``serve_forever``); runs end with the context.

    ``port`` 0 takes any that is free; ``folder`` is where runs are saved. Raises ValueError for a port that is taken
    and where Dash is not installed.
    """
    try:
        from werkzeug.serving import make_server

        from sim.app.site import create
    except ImportError as error:
        raise ValueError(_missing(error)) from None
    with _bound(port) as sock, Runs(folder, abandoned_s) as runs:
        taken = sock.getsockname()[1]
        try:
            app = create(taken, runs)
        except ImportError as error:
            raise ValueError(_missing(error)) from None
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server(HOST, taken, app.server, threaded=True, fd=sock.fileno())
        try:
            yield f"http://{HOST}:{taken}/", server
        finally:
            server.server_close()


def _missing(error: ImportError) -> str:
    return f"app: {error.name or 'dash'} is not installed: pip install 'decodesim[app]'"


@contextmanager
def _bound(port: int) -> Iterator[socket.socket]:
    """A socket that listens on the loopback. Raises ValueError where the port is not to be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(64)
        except OSError as error:
            raise ValueError(f"--port: {port}: {error.strerror or error}; 0 takes any that is free") from None
        yield sock
