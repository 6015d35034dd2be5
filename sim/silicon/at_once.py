"""What benchmark tables have in common whose requests are all there at once: names, one run, a frame of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

import hardware_profiles
from sim.build import Built
from sim.request import Request
from sim.serving.cluster import Cluster
from sim.serving.record import Recorder
from workloads import models

__all__ = ["Row", "answered", "count", "device_named", "model_named", "ran", "word"]

Row = Mapping[str, Any]
FAMILIES = {"mistral7b": "mistral-7b-v0.3", "bloom": "bloom-176b"}  # tables leave the release out
MEMORY = re.compile(r"^(\d+gb|hbm\de?|cg\d|pcap|nvidia)$")  # words beside a device's name


def answered(
    frame: pd.DataFrame,
    columns: Sequence[str],
    answer: Callable[[Row], Sequence[float]],
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """The rows of ``frame`` with ``columns`` of predictions and a ``reason`` where there are none.

    ``answer`` of a row gives a number for each column or raises ValueError saying why not. ``progress`` is told how
    many rows are done.
    """
    found: list[tuple[Any, ...]] = []
    for row in frame.to_dict("records"):
        try:
            found.append((*answer({str(key): value for key, value in row.items()}), ""))
        except ValueError as error:
            found.append((*(np.nan for _ in columns), str(error).splitlines()[0]))
        if progress is not None:
            progress(len(found))
    named = dict(zip((*columns, "reason"), zip(*found, strict=True), strict=True)) if found else {}
    return frame.assign(**{key: list(named.get(key, ())) for key in (*columns, "reason")})


def ran(built: Built, prompt: int, output: int, requests: int) -> Recorder:
    """So many requests of the same lengths through one replica, all of them there from the start."""
    arrivals = iter([Request(i, 0, prompt, output) for i in range(requests)])
    return Cluster(built.setup, 1, built.router, arrivals).run()


def word(row: Row, key: str) -> str:
    """What a column says, as text. Raises ValueError where it says nothing."""
    value = row.get(key)
    if value is None or value != value or not str(value).strip():
        raise ValueError(f"{key}: empty")
    return str(value).strip()


def count(row: Row, key: str) -> int:
    """What a column counts. Raises ValueError for what is no whole number from 1 to a million."""
    text = word(row, key)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 1 <= number <= 1e6 or number != int(number):
        raise ValueError(f"{key}: {text!r:.40}: must be a whole number from 1 to a million")
    return int(number)


@cache
def model_named(text: str) -> str:
    """The shipped model that a table's spelling means: ``LLaMA v3.1 70B``, ``Mixtral 8x7B``. Raises ValueError."""
    wanted = re.sub(r"v(?=\d)", "", _plain(text))
    wanted = re.sub(r"^meta|instruct$|chat$", "", wanted)
    shipped = {re.sub(r"v(?=\d)", "", _plain(name)): name for name in models.names()}
    found = shipped.get(wanted) or FAMILIES.get(wanted)
    if found is None:
        raise ValueError(f"model: {text!r:.60}: no model of that name is shipped")
    return found


@cache
def device_named(*texts: str) -> str:
    """The shipped device that one of a table's spellings means, the first that is known. Raises ValueError."""
    shipped = {_plain(name): own for name, own in hardware_profiles.aliases().items()}
    shipped |= {_plain(name): name for name in hardware_profiles.names()}
    for text in texts:
        words = re.sub(r"sxm\d", "sxm", text.lower().replace("_", "-")).replace("-", " ").split()
        for some in (words, [w for w in words if w != "pcap"], [w for w in words if not MEMORY.match(w)]):
            if (known := _plain("".join(some))) in shipped:
                return shipped[known]
    raise ValueError(f"gpu: {texts[0]!r:.60}: no device of that name is shipped")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text.lower())
