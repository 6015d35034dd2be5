"""``decodesim init``: a scenario from what a gateway logged, or from a saved scrape of vLLM's metrics."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer

from sim._version import __version__
from sim.analytic.memory import DoesNotFit
from sim.build import build_scenario, load_device, load_engine, load_shape
from sim.plugin import suggest
from sim.scenario import Scenario
from workloads.errors import brief
from workloads.exposition import Histogram
from workloads.from_log import COLUMNS, UNITS, Log, read_log
from workloads.from_prometheus import Scrape, length_law, read_scrape
from workloads.source import Source

__all__ = ["Asked", "run"]

PERCENTS = (50, 90, 99)
MOST_SECONDS = 3.2e8  # ten years
SAFE = re.compile(r"[A-Za-z][\w./-]*", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """The options: one of ``log`` and ``prometheus``, and what the file itself does not say."""

    out: str
    log: str | None = None
    prometheus: str | None = None
    model: str | None = None
    hardware: str | None = None
    engine: str | None = None
    columns: Sequence[str] = ()
    time_unit: str | None = None
    since: str | None = None
    seconds: float | None = None
    served: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, one line, for options that contradict each other or mean nothing."""
        if (self.log is None) == (self.prometheus is None):
            raise ValueError("--log: give a gateway's log, or --prometheus with a saved scrape; one of the two")
        if not self.out.endswith((".yaml", ".yml")):
            raise ValueError(f"--out: {self.out}: a scenario's name ends in .yaml")
        if self.seconds is not None and not 0 < self.seconds < MOST_SECONDS:
            raise ValueError(f"--seconds: {self.seconds:g}: must be above 0 and below {MOST_SECONDS:g}")
        if self.time_unit is not None and self.time_unit not in UNITS:
            raise ValueError(f"--time-unit: {self.time_unit}: allowed: {', '.join(UNITS)}")
        self._of_the_other()

    def _of_the_other(self) -> None:
        log = {"--column": self.columns, "--time-unit": self.time_unit}
        scrape = {"--since": self.since, "--seconds": self.seconds, "--served": self.served}
        wrong, right = (scrape, "--prometheus") if self.log is not None else (log, "--log")
        for option, given in wrong.items():
            if given is not None and given != () and given != []:
                raise ValueError(f"{option}: belongs to {right}")


@dataclass(frozen=True)
class Draft:
    """A scenario in the making: where from, the lines of its traffic, what was measured, files that lie beside it."""

    origin: str
    model: str
    engine: str
    traffic: Sequence[str]
    latency_ms: Mapping[str, Sequence[float]]
    files: Mapping[str, bytes]
    notes: Sequence[str] = ()
    kv: Sequence[str] = field(default_factory=tuple)


def run(asked: Asked, overwrite: bool = False) -> None:
    """Write the scenario and what it names, or nothing. Raises ValueError, one line."""
    if asked.hardware is None:
        raise ValueError("--hardware: the file does not say what it ran on; name a profile (decodesim profiles)")
    load_device(asked.hardware)
    draft = _of_log(asked) if asked.log is not None else _of_scrape(asked)
    out = Path(asked.out)
    files = {**draft.files, out.name: _yaml(draft, asked).encode()}
    warning = _write(files, out.parent, overwrite)
    for note in (*draft.notes, *([warning] if warning else [])):
        typer.echo(f"note: {note}")
    typer.echo(f"wrote {', '.join(str(out.parent / name) for name in reversed(files))}")


# -- from a log


def _of_log(asked: Asked) -> Draft:
    assert asked.log is not None
    if asked.model is None:
        raise ValueError("--model: a log does not say which model; name one (decodesim models)")
    log = read_log(_source(asked.log, "--log"), _columns(asked.columns), asked.time_unit)
    trace = f"{Path(asked.out).stem}-trace.csv.gz"
    traffic = [
        f"# {log.rate:.4g} requests/s on average, {log.busiest():.4g} in the busiest minute;",
        f"# prompts {_lengths(log.prompt_tokens)},",
        f"# answers {_lengths(log.output_tokens)}.",
        "# `rate_scale: 2` makes it twice as fast; `duration_s`, `requests` take a part.",
        f"workload: {{trace: ./{trace}}}",
    ]
    latency = {name: [float(np.percentile(values, p)) for p in PERCENTS] for name, values in log.latency_ms.items()}
    notes = [f"{log.left_out:,} rows without tokens were left out"] * (log.left_out > 0)
    origin = f"{brief(Path(asked.log).name)}: {len(log.arrival_ns):,} requests in {_figure(log.span_s)} s"
    return Draft(origin, asked.model, asked.engine or "ideal", traffic, latency, {trace: _trace(log)}, notes)


def _columns(said: Sequence[str]) -> dict[str, str]:
    found = {}
    for one in said:
        what, equals, name = one.partition("=")
        if not equals or what not in COLUMNS:
            raise ValueError(f"--column: {brief(one)}: must be WHAT=NAME, WHAT one of {', '.join(COLUMNS)}"
                             f"{suggest(what, COLUMNS)}")  # fmt: skip
        found[what] = name
    return found


def _figure(value: float) -> str:
    """Four digits, never with an exponent that YAML would read as a word."""
    return f"{float(f'{value:.4g}'):.15g}"


def _lengths(tokens: Any) -> str:
    p50, p99 = np.percentile(tokens, [50, 99])
    return f"of {tokens.mean():.4g} tokens on average (p50 {p50:.4g}, p99 {p99:.4g})"


def _trace(log: Log) -> bytes:
    """decodesim's own trace format, the same bytes every time."""
    columns = (column.tolist() for column in (log.arrival_ns, log.prompt_tokens, log.output_tokens))
    rows = "".join(f"{at},{prompt},{output}\n" for at, prompt, output in zip(*columns, strict=True))
    return gzip.compress(f"arrival_ns,prompt_tokens,output_tokens\n{rows}".encode(), 6, mtime=0)


# -- from a scrape


def _of_scrape(asked: Asked) -> Draft:
    assert asked.prometheus is not None
    since = None if asked.since is None else _source(asked.since, "--since")
    scrape = read_scrape(_source(asked.prometheus, "--prometheus"), since, asked.seconds, asked.served)
    stem = Path(asked.out).stem
    laws = {f"{stem}-{side}.csv": _law(asked.prometheus, side, one) for side, one in scrape.lengths.items()}
    traffic = [
        f"# {scrape.rate:.4g} requests/s answered on average over {_figure(scrape.span_s)} s; a peak is higher.",
        *(f"# {side}: {_law_words(one)}" for side, one in scrape.lengths.items()),
        "# Arrivals are not in a scrape: poisson is a guess; `{kind: gamma, cv: 2}` is burstier.",
        "workload:",
        f"  rate: {scrape.rate:.6g}",
        "  arrivals: poisson",
        *(f"  {side}: {{kind: empirical, file: ./{stem}-{side}.csv, column: {side}}}" for side in scrape.lengths),
        f"  requests: {min(max(math.ceil(scrape.requests), 100), 5000)}",
    ]
    latency = {n: [1e3 * one.percentile(p) for p in PERCENTS] for n, one in scrape.latency_s.items()}
    model = asked.model or _shipped(asked.prometheus, scrape.model_name)
    origin = f"{brief(Path(asked.prometheus).name)}: {scrape.requests:,.0f} requests of {brief(scrape.model_name)}"
    return Draft(origin, model, asked.engine or "vllm-v1", traffic, latency, laws, _little(scrape), _cache(scrape))


def _shipped(file: str, name: str) -> str:
    """The shipped model that the label names: as it is, or its last part, as paths of local folders have it."""
    for said in (name, name.rstrip("/").rpartition("/")[2]):
        try:
            return load_shape(said, "model").name
        except ValueError:
            continue
    raise ValueError(f"--model: {file} says {brief(name)!r}, which is no shipped model; give one, or a config.json")


def _law(file: str, side: str, counted: Histogram) -> bytes:
    try:
        law = length_law(counted)
    except ValueError as error:
        raise ValueError(f"{file}: {side}: {error}") from None
    head = "input_tokens" if side == "prompt" else "output_tokens"
    return (f"{head},prob\n" + "".join(f"{tokens},{share:.9g}\n" for tokens, share in law)).encode()


def _law_words(counted: Histogram) -> str:
    return f"{counted.mean:.4g} tokens on average, p50 {counted.percentile(50):.4g}, p99 {counted.percentile(99):.4g}"


def _little(scrape: Scrape) -> list[str]:
    """A note where requests in the system by Little's law are far from those at the instant of the scrape."""
    if "e2el" not in scrape.latency_s or not scrape.gauges:
        return []
    usual, seen = scrape.rate * scrape.latency_s["e2el"].mean, sum(scrape.gauges.values())
    far = seen > 4 and not usual / 3 < seen < 3 * usual
    told = f"{seen:.0f} requests were running or waiting at the scrape, by Little's law {usual:.3g} on average"
    return [f"{told}: the average over this span may hide a peak; scrape before and after it (--since)"] * far


def _cache(scrape: Scrape) -> list[str]:
    """Lines of ``kv`` and ``precision`` that vLLM's cache config gives; what it writes otherwise is passed over."""
    cache, kv = scrape.cache, []
    block, share = cache.get("block_size", ""), cache.get("gpu_memory_utilization", "")
    if block.isdecimal() and 1 <= int(block[:6]) <= 4096:
        kv.append(f"block_tokens: {int(block)}")
    if re.fullmatch(r"0?\.\d{1,6}|1(\.0)?", share) and float(share) > 0:
        kv.append(f"memory_fraction: {float(share)}")
    lines = [f"kv: {{{', '.join(kv)}}}"] if kv else []
    if cache.get("enable_prefix_caching", "").lower() == "true":
        lines.append("# The server kept prefixes; a scrape does not say which prompts share one: none is found again.")
    if cache.get("cache_dtype", "").startswith("fp8"):
        lines.append("precision: {kv: fp8}")
    return lines


# -- the file


def _yaml(draft: Draft, asked: Asked) -> str:
    load_engine(draft.engine)
    load_shape(draft.model, "model")
    model, hardware, engine = (_name(said, asked.out) for said in (draft.model, str(asked.hardware), draft.engine))
    kv = ["", "# The KV cache, as the server had it.", *draft.kv] if draft.kv else []
    lines = [
        f"# decodesim {__version__} init, from {draft.origin}.",
        "# Change what is not so; docs/scenario.md has every key and its default.",
        "",
        "# What is served: a shipped name, or the path of a config.json.",
        f"model: {model}",
        "# One device; `layout: {tensor: 2}` shares the model between two.",
        f"hardware: {hardware}",
        "# Host time and kernels of the engine; `ideal` takes no host time at all.",
        f"engine: {engine}",
        "# How passes turn into tokens; `{name: speculative, draft: ..., gamma: 4, acceptance: 0.7}` drafts.",
        "policy: autoregressive",
        "# How many copies share this traffic.",
        "replicas: 1",
        *kv,
        "",
        "# Traffic:",
        *draft.traffic,
        "",
        *_promises(draft.latency_ms),
        "",
        "# Of everything that is drawn.",
        "seed: 0",
    ]
    return "\n".join(lines) + "\n"


def _name(said: str, out: str) -> str:
    """A name as YAML takes it; a path as it is seen from the scenario's folder."""
    if os.path.exists(said):
        said = os.path.relpath(said, Path(out).parent)
        said = said if said.startswith("../") else f"./{said}"
    return said if SAFE.fullmatch(said) else json.dumps(said)


def _promises(latency_ms: Mapping[str, Sequence[float]]) -> list[str]:
    """What was measured, and an objective of as much, as comments: a promise is for its maker to make."""
    known = {name: latency_ms[name] for name in ("ttft", "tpot", "e2el") if name in latency_ms}
    measured = [
        f"# Measured {name.upper()}: " + ", ".join(f"p{p} {_figure(ms)} ms" for p, ms in zip(PERCENTS, of, strict=True))
        for name, of in known.items()
    ]
    keys = [f"{name}_ms: {_figure(of[-1])}" for name, of in known.items() if name != "e2el" and 0 < of[-1] < math.inf]
    if not keys:
        return [*measured, "# What is promised; there is no goodput without:",
                "# slo: {ttft_ms: 1000, tpot_ms: 50, percentile: 99}"]  # fmt: skip
    return [*measured, "# To promise what was measured, or less:", f"# slo: {{{', '.join(keys)}, percentile: 99}}"]


def _write(files: Mapping[str, bytes], folder: Path, overwrite: bool) -> str | None:
    """All files, checked together beside their place, then moved there; what stands against a run, if it is legal."""
    for name in files:
        if (folder / name).exists() and not overwrite:
            raise ValueError(f"--out: {folder / name} exists; add --overwrite, or choose another name")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as beside:
            for name, data in files.items():
                (Path(beside) / name).write_bytes(data)
            warning = _stands_against(Path(beside) / list(files)[-1])
            for name in files:
                os.replace(Path(beside) / name, folder / name)
    except OSError as error:
        raise ValueError(f"--out: {folder}: cannot be written: {error.strerror or error}") from None
    return warning


def _stands_against(path: Path) -> str | None:
    """What no device of its kind can do is a note; what no scenario may say, ValueError."""
    try:
        build_scenario(Scenario.load(path))
    except DoesNotFit as error:
        return f"it will not run as it is: {error}"
    except ValueError as error:
        raise ValueError(str(error).replace(f"{path.parent}/", "")) from None
    return None


def _source(file: str, option: str) -> Source:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{option}: {brief(file, 200)}: no such file")
    return Source(path)
