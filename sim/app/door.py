"""Who may speak to the page: browsers on this machine that opened it here, and nobody through another site.

A name that points to 127.0.0.1 (DNS rebinding) has another Host; a form or a script of another site has another
Origin, and can send JSON only after a preflight, which is refused like everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HOST", "LARGEST_BYTES", "guard", "refusal"]

HOST = "127.0.0.1"
LARGEST_BYTES = 1 << 16
NOT_OURS = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)
"""What Dash raises, beside its own, where a request is not one that its own page would send."""


def refusal(method: str, headers: Mapping[str, str], port: int) -> str:
    """Why a request is refused, in a line; empty where it is not."""
    ours = {f"{name}:{port}" for name in (HOST, "localhost")} | ({HOST, "localhost"} if port == 80 else set())
    if headers.get("Host", "") not in ours:
        return f"Host: must be {HOST}:{port}"
    origin = headers.get("Origin")
    if origin is not None and origin not in {f"http://{name}" for name in ours}:
        return f"Origin: must be http://{HOST}:{port}"
    if method in ("GET", "HEAD"):
        return ""
    if method != "POST":
        return "method: must be GET or POST"
    if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return "Sec-Fetch-Site: must be same-origin"
    kind = headers.get("Content-Type", "").split(";")[0].strip().lower()
    return "" if kind == "application/json" else "Content-Type: must be application/json"


def guard(app: Any, port: int) -> None:
    """Put the rules before every answer of a Dash app, and headers behind it that keep other sites' scripts out."""
    from dash.exceptions import DashException
    from flask import Response, request
    from werkzeug.exceptions import HTTPException

    server = app.server
    server.config["MAX_CONTENT_LENGTH"] = LARGEST_BYTES

    @server.before_request  # type: ignore[untyped-decorator]
    def look() -> Any:
        why = refusal(request.method, request.headers, port)
        return Response(f"decodesim: refused: {why}\n", 403, mimetype="text/plain") if why else None

    @server.errorhandler(Exception)  # type: ignore[untyped-decorator]
    def fail(error: Exception) -> Any:
        if isinstance(error, HTTPException):
            return error
        if isinstance(error, (*NOT_OURS, DashException)) and request.method == "POST":
            return Response("decodesim: not a request of this page\n", 400, mimetype="text/plain")
        raise error

    scripts = " ".join(app.csp_hashes())

    @server.after_request  # type: ignore[untyped-decorator]
    def close(response: Any) -> Any:
        response.headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline';"
            " img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response
