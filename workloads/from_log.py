"""What a gateway's log says of its traffic: CSV or JSON lines, columns found by their usual names.

Rows may come in any order (logs are often sorted by the end of a request). Rows without tokens on both sides, which is
how failed requests look, are left out and counted. Nothing but times and counts is kept.
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workloads.check import SPAN_NS_MAX, TOKENS_MAX, TOO_MANY
from workloads.columns import Ints
from workloads.csvfile import header_of
from workloads.errors import TraceError, brief, hint
from workloads.layout import NS_PER
from workloads.numbers import date_ns, number, tokens
from workloads.source import Source

__all__ = ["COLUMNS", "UNITS", "Log", "read_log"]

UNITS = ("date", "s", "ms", "us", "ns")
ROWS_MAX = 20_000_000
DEPTH_MAX = 3
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "time": (
        "timestamp", "time", "ts", "@timestamp", "arrival", "arrival_time", "arrived_at", "start_time", "started_at",
        "request_time", "request_timestamp", "received_at", "created", "created_at", "datetime", "date",
    ),
    "prompt": (
        "prompt_tokens", "input_tokens", "context_tokens", "num_prompt_tokens", "num_prefill_tokens", "prefill_tokens",
        "input_length", "prompt_length", "prompt_len", "tokens_in", "n_prompt_tokens", "request_tokens",
        "usage.prompt_tokens", "usage.input_tokens", "response.usage.prompt_tokens", "response.usage.input_tokens",
    ),
    "output": (
        "completion_tokens", "output_tokens", "generated_tokens", "num_output_tokens", "num_decode_tokens",
        "generation_tokens", "decode_tokens", "output_length", "output_len", "tokens_out", "n_output_tokens",
        "response_tokens", "usage.completion_tokens", "usage.output_tokens", "response.usage.completion_tokens",
        "response.usage.output_tokens",
    ),
    "ttft": ("ttft", "time_to_first_token", "first_token_latency"),
    "tpot": ("tpot", "time_per_output_token"),
    "e2el": ("e2el", "e2e", "e2e_latency", "latency", "duration", "total_time", "response_time", "request_latency"),
}  # fmt: skip
"""What a scenario needs, and what such columns are usually called (any case; a unit may follow: ``ttft_ms``)."""

NEEDED = ("time", "prompt", "output")
WORDS = {"time": "arrival times", "prompt": "prompt tokens", "output": "output tokens"}
SUFFIXES = {"s": "s", "sec": "s", "secs": "s", "seconds": "s", "ms": "ms", "millis": "ms", "milliseconds": "ms",
            "us": "us", "micros": "us", "microseconds": "us", "ns": "ns", "nanos": "ns"}  # fmt: skip
STAMP = re.compile(r"[+-]?\d{19}", re.ASCII)
EPOCHS = (("s", 10**8, 10**10), ("ms", 10**11, 10**13), ("us", 10**14, 10**16), ("ns", 10**17, 10**19))


@dataclass(frozen=True)
class Log:
    """Requests [n] by arrival, counted from the first; ``latency_ms``: values of those rows that have them."""

    arrival_ns: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    latency_ms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    left_out: int = 0

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_ns[-1]) * 1e-9

    @property
    def rate(self) -> float:
        """Requests per second between the first and the last."""
        return (len(self.arrival_ns) - 1) / self.span_s

    def busiest(self, window_s: float = 60.0) -> float:
        """Requests per second of the busiest window, which is no longer than the log."""
        window_s = min(window_s, self.span_s)
        ends = np.searchsorted(self.arrival_ns, self.arrival_ns + int(window_s * 1e9), side="left")
        return float((ends - np.arange(len(ends))).max()) / window_s


@dataclass(frozen=True)
class _Column:
    name: str
    unit: str = ""


def read_log(source: Source, said: Mapping[str, str] | None = None, time_unit: str | None = None) -> Log:
    """The log, sorted by arrival. ``said``: columns by what they are, where their names are not the usual ones.

    Raises TraceError or ValueError, one line, for a column that is not found, a unit that nobody can tell, a bad row.
    """
    rows = _objects(source) if source.head().lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") else _cells(source)
    first = next(rows, None)
    if first is None:
        raise TraceError(source.name, 1, "rows", 0, "at least two requests")
    columns = _columns(source.name, list(first[1]), said or {})
    unit = _time_unit(source.name, columns["time"], first[1], time_unit)
    kept = _Kept(source.name, {**columns, "time": _Column(columns["time"].name, unit)})
    kept.take(first)
    for row in rows:
        kept.take(row)
    return kept.log()


# -- columns


def _columns(file: str, names: list[str], said: Mapping[str, str]) -> dict[str, _Column]:
    found = {}
    for what in COLUMNS:
        if what in said:
            if said[what] not in names:
                raise ValueError(f"--column: {what}={said[what]}: {file} has no such column; {_has(said[what], names)}")
            found[what] = _Column(said[what], _bare(said[what])[1])
            continue
        column = _usual(names, COLUMNS[what])
        if column is not None:
            found[what] = column
        elif what in NEEDED:
            raise ValueError(
                f"{file}: no column of {WORDS[what]} is known by its name; "
                f"say which with --column {what}=NAME; {_has(what, names)}"
            )
    return found


def _has(word: str, names: list[str]) -> str:
    return brief(hint(word, names), 300)


def _usual(names: Iterable[str], usual: tuple[str, ...]) -> _Column | None:
    """The column with the first of the usual names."""
    known: dict[str, _Column] = {}
    for name in names:
        bare, unit = _bare(name)
        known.setdefault(bare, _Column(name, unit))
        known.setdefault(_snake(name), _Column(name, unit))
    return next((known[name] for name in usual if name in known), None)


def _bare(name: str) -> tuple[str, str]:
    """(name without its unit, the unit or nothing)."""
    snake = _snake(name)
    head, _, tail = snake.rpartition("_")
    return (head.removesuffix("_in"), SUFFIXES[tail]) if head and tail in SUFFIXES else (snake, "")


def _snake(name: str) -> str:
    """promptTokens, Prompt Tokens, prompt-tokens -> prompt_tokens."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s_()\-]+", "_", split).strip("_").lower()


def _time_unit(file: str, column: _Column, row: Mapping[str, object], said: str | None) -> str:
    """The unit of the arrival column: as said, by its name, by a calendar date, or by the size of a stamp."""
    value = row.get(column.name)
    if said is not None:
        return said
    if column.unit:
        return column.unit
    try:
        date_ns(value)
    except ValueError:
        pass
    else:
        return "date"
    size = _size(value)
    unit = next((unit for unit, low, high in EPOCHS if low <= size < high), None)
    if unit is None and size >= 0 and not float(size).is_integer():
        unit = "s"
    if unit is None:
        shown = brief(repr(value), 40)
        raise ValueError(f"{file}: {column.name}: {shown}: its unit cannot be told; --time-unit {' | '.join(UNITS)}")
    return unit


def _size(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        return -1.0


# -- rows


Row = tuple[int, Mapping[str, object]]


def _cells(source: Source) -> Iterator[Row]:
    header: list[str] | None = None
    for block in source.blocks():
        for offset, raw in enumerate(block.data.split(b"\n")):
            line, text = block.first_line + offset, raw.decode().rstrip("\r")
            if header is None:
                header = header_of(raw)
                _once(source.name, header)
            elif text.strip():
                yield line, _named(source.name, line, header, text)


def _once(file: str, header: list[str]) -> None:
    if not header or len(set(header)) < len(header):
        raise TraceError(file, 1, "header", header, "names of columns, every one once")


def _named(file: str, line: int, header: list[str], text: str) -> dict[str, object]:
    try:
        cells = next(csv.reader([text], strict=True), [])
    except csv.Error:
        raise TraceError(file, line, "line", text, "comma-separated values") from None
    if len(cells) != len(header):
        raise TraceError(file, line, "line", text, f"{len(header)} values, as the header has, not {len(cells)}")
    return dict(zip(header, cells, strict=True))


def _objects(source: Source) -> Iterator[Row]:
    for block in source.blocks():
        for offset, raw in enumerate(block.data.split(b"\n")):
            if raw.strip():
                yield block.first_line + offset, _flat(_object(source.name, block.first_line + offset, raw))


def _object(file: str, line: int, raw: bytes) -> dict[str, object]:
    try:
        entry = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise TraceError(file, line, "line", raw[:80], "one JSON object")
    return entry


def _flat(entry: Mapping[str, object], above: str = "", depth: int = 1) -> dict[str, object]:
    """Nested objects as ``usage.prompt_tokens``."""
    found: dict[str, object] = {}
    for name, value in entry.items():
        if isinstance(value, dict) and depth < DEPTH_MAX:
            found.update(_flat(value, f"{above}{name}.", depth + 1))
        else:
            found[above + name] = value
    return found


class _Kept:
    """What is kept of every row, as flat numbers."""

    def __init__(self, file: str, columns: Mapping[str, _Column]) -> None:
        self.file, self.columns = file, columns
        self.numbers = {what: array("q") for what in NEEDED}
        self.latency = {what: array("d") for what in ("ttft", "tpot", "e2el") if _timed(columns.get(what))}
        self.left_out = 0

    def take(self, row: Row) -> None:
        line, entry = row
        cells = {what: entry.get(column.name) for what, column in self.columns.items()}
        if any(cells[what] in (None, "") for what in ("prompt", "output")):
            self.left_out += 1
            return
        counts = [self._tokens(line, what, cells[what]) for what in ("prompt", "output")]
        if 0 in counts:
            self.left_out += 1
            return
        if len(self.numbers["time"]) >= ROWS_MAX:
            raise TraceError(self.file, line, "rows", line, f"at most {ROWS_MAX:,} requests; cut the log")
        for what, value in zip(NEEDED, (self._stamp(line, cells["time"]), *counts), strict=True):
            self.numbers[what].append(value)
        for what, values in self.latency.items():
            values.append(self._ms(line, what, cells[what]))

    def _tokens(self, line: int, what: str, value: object) -> int:
        name = self.columns[what].name
        try:
            count = tokens(value)
        except ValueError as error:
            raise TraceError(self.file, line, name, value, str(error)) from None
        if not 0 <= count <= TOKENS_MAX:
            raise TraceError(self.file, line, name, value, TOO_MANY if count > 0 else "tokens must be >= 0")
        return count

    def _stamp(self, line: int, value: object) -> int:
        column = self.columns["time"]
        try:
            return _stamp_ns(value, column.unit)
        except ValueError as error:
            raise TraceError(self.file, line, column.name, value, str(error)) from None

    def _ms(self, line: int, what: str, value: object) -> float:
        """Milliseconds, NaN where the row has none."""
        if value in (None, ""):
            return float("nan")
        column = self.columns[what]
        try:
            found_ns = number(value, NS_PER[column.unit])
        except ValueError as error:
            raise TraceError(self.file, line, column.name, value, str(error)) from None
        if found_ns < 0:
            raise TraceError(self.file, line, column.name, value, "a latency is not below 0")
        return found_ns * 1e-6

    def log(self) -> Log:
        """Sorted by arrival. Raises TraceError where too few are left to know a rate."""
        time, prompt, output = (np.array(self.numbers[what], np.int64) for what in NEEDED)
        if len(time) < 2 or time.min() == time.max():
            allowed = f"at least two requests at different times ({self.left_out} rows left out)"
            raise TraceError(self.file, 1, "rows", len(time), allowed)
        order = np.argsort(time, kind="stable")
        arrival = time[order] - time[order[0]]
        if int(time.max()) - int(time.min()) > SPAN_NS_MAX:
            raise TraceError(self.file, 1, self.columns["time"].name, int(time.max()), "ten years; is the unit right?")
        latency = {what: np.array(values)[order] for what, values in self.latency.items()}
        return Log(arrival, prompt[order], output[order], _with_tpot(latency, output[order]), self.left_out)


def _stamp_ns(value: object, unit: str) -> int:
    """Nanoseconds; those since 1970 have nineteen digits, more than a count of anything else may have."""
    if unit == "date":
        return date_ns(value)
    if unit == "ns" and isinstance(value, str) and STAMP.fullmatch(value.strip()):
        value = int(value)
    if unit == "ns" and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62:
        return value
    return number(value, NS_PER[unit])


def _timed(column: _Column | None) -> bool:
    """A latency whose unit is not in its name says nothing."""
    return column is not None and bool(column.unit)


def _with_tpot(latency: dict[str, NDArray[np.float64]], output: Ints) -> dict[str, NDArray[np.float64]]:
    """TPOT = (E2EL - TTFT) / (output tokens - 1), where it was not measured by itself."""
    found = dict(latency)
    if "tpot" not in found and {"ttft", "e2el"} <= set(found):
        after = np.maximum(found["e2el"] - found["ttft"], 0.0)
        found["tpot"] = np.where(output > 1, after / np.maximum(output - 1, 1), np.nan)
    known = {what: values[np.isfinite(values)] for what, values in found.items()}
    return {what: values for what, values in known.items() if len(values)}
