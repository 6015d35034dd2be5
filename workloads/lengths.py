"""Token lengths: fixed, lognormal, uniform, or drawn from a file; endless blocks of whole tokens, at least 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from workloads.columns import Ints
from workloads.draws import BLOCK_ROWS, draws
from workloads.keys import LENGTHS, TOKENS, kind_of
from workloads.readers import reader, servegen
from workloads.shipped import Shipped, locate
from workloads.source import Source
from workloads.trace import open_trace

Sampler = Callable[[np.random.Generator, int], Ints]
SIDES = ("prompt", "output")


def length_blocks(spec: object, side: str, seed: int, stream: int = 0) -> Iterator[Ints]:
    """Endless blocks [8192] of the lengths that `spec` describes; `side` is "prompt" or "output".

    `spec` is a number of tokens or `{kind: fixed | lognormal | uniform | empirical, ...}`. Raises ValueError.
    """
    sample = sampler(spec, side)
    rng = draws(seed, side, stream)
    while True:
        yield sample(rng, BLOCK_ROWS)


def joint_blocks(name: str, seed: int, stream: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Endless blocks of (prompt, output) drawn together, row by row, from a trace or a file of lengths."""
    both = [_file_lengths(str(name), None, side) for side in SIDES]
    rng = draws(seed, "lengths", stream)
    while True:
        row = (rng.random(BLOCK_ROWS) * len(both[0])).astype(np.int64)
        yield both[0][row], both[1][row]


def sampler(spec: object, side: str) -> Sampler:
    """A function (generator, n) -> lengths [n]. Raises ValueError for a spec that makes no sense."""
    where = f"workload: {side}"
    if not isinstance(spec, Mapping):
        if not TOKENS.accepts(spec):
            raise ValueError(f"{where}: {spec!r}: must be {TOKENS.allowed}, or {{kind: {' | '.join(LENGTHS)}, ...}}")
        spec = {"kind": "fixed", "tokens": spec}
    kind, options = kind_of(spec, LENGTHS, where)
    make = {"fixed": _fixed, "lognormal": _lognormal, "uniform": _uniform, "empirical": _empirical}[kind]
    return _clipped(make(options, where, side), options, where)


def _clipped(sample: Sampler, options: Mapping[str, object], where: str) -> Sampler:
    """Lengths beyond `min` or `max` are set to them: the tail becomes an atom, so the mean moves a little."""
    low, high = int(cast(int, options.get("min", 1))), int(cast(int, options.get("max", TOKENS.at_most)))
    if low > high:
        raise ValueError(f"{where}: min: {low}: must be at most max, {high}")
    return lambda rng, n: np.clip(sample(rng, n), low, high)


def _fixed(options: Mapping[str, object], where: str, side: str) -> Sampler:
    if "tokens" not in options:
        raise ValueError(f"{where}: tokens: missing: {TOKENS.allowed}")
    return lambda _, n: np.full(n, cast(int, options["tokens"]), np.int64)


def _lognormal(options: Mapping[str, object], where: str, side: str) -> Sampler:
    """Mean and CV of the unclipped law: sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2."""
    if "mean" not in options or ("cv" in options) == ("sigma" in options):
        raise ValueError(f"{where}: lognormal: needs mean and one of cv, sigma")
    cv, sigma = cast(float, options.get("cv", 0.0)), cast(float, options.get("sigma", 0.0))
    sigma = sigma or math.sqrt(math.log1p(cv * cv))
    mu = math.log(cast(float, options["mean"])) - 0.5 * sigma * sigma
    ceiling = float(cast(float, TOKENS.at_most))

    def sample(rng: np.random.Generator, n: int) -> Ints:
        with np.errstate(over="ignore"):
            return np.rint(np.minimum(np.exp(mu + sigma * rng.standard_normal(n)), ceiling)).astype(np.int64)

    return sample


def _uniform(options: Mapping[str, object], where: str, side: str) -> Sampler:
    if not {"low", "high"} <= set(options):
        raise ValueError(f"{where}: uniform: needs low and high")
    low, high = cast(int, options["low"]), cast(int, options["high"])
    if low > high:
        raise ValueError(f"{where}: low: {low}: must be at most high, {high}")
    return lambda rng, n: low + (rng.random(n) * (high - low + 1)).astype(np.int64)


def _empirical(options: Mapping[str, object], where: str, side: str) -> Sampler:
    if ("name" in options) == ("file" in options):
        raise ValueError(f"{where}: empirical: needs one of name, file")
    name = cast(str, options.get("name", options.get("file")))
    column = cast(str, options.get("column", side))
    form = cast("str | None", options.get("format"))
    pmf = _pmf(name, form, column, where)
    if pmf is not None:
        values, upto = pmf
        return lambda rng, n: values[np.searchsorted(upto, rng.random(n), side="right")]
    lengths = _file_lengths(name, form, column)
    return lambda rng, n: lengths[(rng.random(n) * len(lengths)).astype(np.int64)]


def _pmf(name: str, form: str | None, column: str, where: str) -> tuple[Ints, NDArray[np.float64]] | None:
    """(lengths, cumulative probability) where the name or file is a ServeGen distribution."""
    found = locate(name, where)
    path = found.files[SIDES.index(column) % len(found.files)] if isinstance(found, Shipped) else found
    if form is not None and reader(form) is not servegen:
        return None
    return _loaded_pmf(path) if form is not None or servegen.sniff(Source(path).head()) else None


@cache
def _loaded_pmf(path: Path) -> tuple[Ints, NDArray[np.float64]]:
    return servegen.distribution(Source(path))


@cache
def _file_lengths(name: str, form: str | None, side: str) -> Ints:
    """One side's lengths of a whole file, zero-token rows left out."""
    chunks = open_trace(name, format=form).lengths()
    pairs = [c.prompt_tokens if side == "prompt" else c.output_tokens for c in chunks]
    if not pairs:
        raise ValueError(f"{name}: rows: 0: needs at least one row with tokens on both sides")
    return np.concatenate(pairs)
