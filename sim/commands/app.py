"""``decodesim app``: the page to play what-if with, on this machine alone."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import typer

from sim.app.serve import listening

__all__ = ["play"]


def play(port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C; runs are saved below runs/. Raises ValueError, one line."""
    with listening(port, Path("runs")) as (address, server):
        typer.echo(f"decodesim app: {address} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        server.serve_forever()  # Ctrl-C ends it
    typer.echo("decodesim app: ended")
