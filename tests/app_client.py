"""Speaks to the page's server as its own script does, without a browser: callbacks by the ids of what they change."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.app.asked import HERE, start_positions
from sim.app.runs import Runs

PORT = 8050
URL = f"http://127.0.0.1:{PORT}"


class Tab:
    """One open page: its controls stand where a new page's stand until a call says otherwise."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.callbacks = client.get("/_dash-dependencies", base_url=URL).json
        self.values = {**start_positions(), "source": HERE, "start": 1, "run": None, "poll": 1, "cancel": None}

    def body(self, changes: str, changed: str, **values: Any) -> dict[str, Any]:
        """What the page's script would send for the callback that changes ``changes`` (ID.PROPERTY)."""
        found = next(c for c in self.callbacks if changes in c["output"].strip(".").split("..."))
        said = self.values | values
        parts = {kind: [{**one, "value": said[one["id"]]} for one in found[kind]] for kind in ("inputs", "state")}
        names = found["output"].strip(".").split("...")
        outputs: Any = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names]
        return {"output": found["output"], "outputs": outputs if found["output"].startswith("..") else outputs[0],
                "changedPropIds": [changed], "parsedChangedPropsIds": [changed], **parts}  # fmt: skip

    def post(self, body: Any, **headers: str) -> Any:
        """The response to a body, JSON unless it is text already."""
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        given = {"Content-Type": "application/json"} | {name.replace("_", "-"): v for name, v in headers.items()}
        return self.client.post("/_dash-update-component", data=text, headers=given, base_url=URL)

    def moved(self, **values: Any) -> dict[str, Any]:
        """What the page shows once controls have moved, by id."""
        return self._shown(self.body("sentence.children", "batch.value", **values))

    def begin(self, **values: Any) -> dict[str, Any]:
        """Press Start."""
        return self._shown(self.body("run.data", "start.n_clicks", **values))

    def poll(self, run: str | None, cancel: bool = False) -> dict[str, Any]:
        """What the run's timer, or the button Cancel, brings."""
        changed = "cancel.n_clicks" if cancel else "poll.n_intervals"
        return self._shown(self.body("progress.value", changed, run=run, cancel=1 if cancel else None))

    def _shown(self, body: dict[str, Any]) -> dict[str, Any]:
        response = self.post(body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json["response"]
        return {name.split("@")[0]: value for name, value in found.items()}


@contextmanager
def site(folder: Path, abandoned_s: float = 60.0) -> Any:
    """A test client of a new site, and its runs."""
    from sim.app.site import create

    with Runs(folder, abandoned_s) as runs:
        yield create(PORT, runs).server.test_client(), runs
