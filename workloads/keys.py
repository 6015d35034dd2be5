"""What a workload may say: every key with what it allows, as tables that a scenario schema can reuse."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from workloads.errors import hint, shown


class Rule(Protocol):
    """What one key allows."""

    @property
    def allowed(self) -> str:
        """What a value must be, in words."""

    def accepts(self, value: object) -> bool:
        """Whether a value is that."""


@dataclass(frozen=True)
class Number:
    """A number in a range; `whole` for integers (1000.0 counts), `inf` where infinity means something."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    whole: bool = False
    inf: bool = False

    @property
    def allowed(self) -> str:
        """The range in words."""
        words = "a whole number" if self.whole else "a number"
        limits = [(">", self.above), (">=", self.at_least), ("<=", self.at_most)]
        bounds = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)
        return " ".join(part for part in (words, bounds, "or inf" if self.inf else "") if part)

    def accepts(self, value: object) -> bool:
        """Whether a value is a number in the range; text never is, save "inf" where infinity is allowed."""
        if self.inf and value in ("inf", math.inf):
            return True
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer):
            return False
        return self._in_range(float(value) if isinstance(value, float) else int(value))

    def _in_range(self, value: float | int) -> bool:
        if isinstance(value, float) and (not math.isfinite(value) or (self.whole and not value.is_integer())):
            return False
        if abs(value) >= 2**63:
            return False
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )


@dataclass(frozen=True)
class Text:
    """A name or a path; one of `choices` where there are any."""

    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The choices in words."""
        return "one of " + ", ".join(self.choices) if self.choices else "a name or a path"

    def accepts(self, value: object) -> bool:
        """Whether a value is such text."""
        return isinstance(value, str) and bool(value) and (not self.choices or value in self.choices)


@dataclass(frozen=True)
class Flag:
    """true or false."""

    allowed: str = "true or false"

    def accepts(self, value: object) -> bool:
        """Whether a value is a boolean."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Nested:
    """Something with a table of its own, checked where it is read."""

    allowed: str

    def accepts(self, value: object) -> bool:
        """Anything; the owner looks closer."""
        return True


Table = Mapping[str, Rule]

POSITIVE = Number(above=0)
COUNT = Number(at_least=1, whole=True)
TOKENS = Number(at_least=1, at_most=10**8, whole=True)
RATE = Number(above=0, at_most=1e9, inf=True)
SPREAD = Number(at_least=1e-6, at_most=1e6)
SPAN = Number(at_least=1e-6, at_most=1e9)

ARRIVALS: Mapping[str, Table] = {
    "poisson": {"rescale": Flag()},
    "gamma": {"burstiness": SPREAD, "cv": Number(at_least=1e-3, at_most=1e3), "rescale": Flag()},
    "weibull": {"shape": Number(at_least=0.1, at_most=100), "rescale": Flag()},
    "on_off": {"on_s": SPAN, "off_s": SPAN, "off_fraction": Number(at_least=0, at_most=1)},
    "diurnal": {
        "period_s": SPAN, "amplitude": Number(at_least=0, at_most=1), "phase_s": Number(at_least=-1e9, at_most=1e9),
    },
    "uniform": {},
    "inf": {},
}
ARRIVAL_ALIASES = {"deterministic": "uniform", "constant": "uniform", "mmpp": "on_off", "sinusoid": "diurnal"}

LENGTHS: Mapping[str, Table] = {
    "fixed": {"tokens": TOKENS},
    "lognormal": {
        "mean": Number(at_least=1, at_most=10**8), "cv": SPREAD, "sigma": SPREAD, "min": TOKENS, "max": TOKENS,
    },
    "uniform": {"low": TOKENS, "high": TOKENS},
    "empirical": {
        "name": Text(), "file": Text(), "format": Text(), "column": Text(("prompt", "output")), "min": TOKENS,
        "max": TOKENS,
    },
}  # fmt: skip

_ARRIVAL_WORDS = "a kind of arrivals, or {kind: ..., ...}"
_LENGTH_WORDS = "tokens, or {kind: ..., ...}"
_PRIORITY_WORDS = "a whole number, or {level: weight, ...}"
_EXTRA: Table = {"samples": COUNT, "priority": Nested(_PRIORITY_WORDS), "tenant": Nested(_PRIORITY_WORDS)}

SHARED_PREFIX: Table = {"tokens": TOKENS, "groups": COUNT}
SESSIONS: Table = {
    "turns": Number(at_least=1, at_most=1000, whole=True), "think_time_s": Number(at_least=0, at_most=1e6),
    "think_time_exponential": Flag(),
}  # fmt: skip
SYNTHETIC: Table = {
    "shared_prefix": Nested("{tokens: ..., groups: ...}"), "sessions": Nested("{turns: ..., think_time_s: ...}"),
    "hash_block_tokens": COUNT,
    "rate": RATE, "arrivals": Nested(_ARRIVAL_WORDS), "prompt": Nested(_LENGTH_WORDS), "output": Nested(_LENGTH_WORDS),
    "lengths": Text(), "requests": COUNT, "duration_s": POSITIVE, **_EXTRA,
}  # fmt: skip
TRACE: Table = {
    "trace": Text(), "format": Text(), "hash_block_tokens": COUNT, "rate_scale": POSITIVE, "rate": RATE,
    "arrivals": Nested(_ARRIVAL_WORDS), "requests": COUNT, "duration_s": POSITIVE, "start_s": Number(at_least=0),
    "end_s": POSITIVE, "loop": COUNT, "max_prompt": TOKENS, "max_output": TOKENS, "spread_quantum_s": POSITIVE,
    **_EXTRA,
}  # fmt: skip
MIX: Table = {
    "mix": Nested("a list of workloads, each with a weight"), "rate": RATE, "arrivals": Nested(_ARRIVAL_WORDS),
    "requests": COUNT, "duration_s": POSITIVE,
}  # fmt: skip
CLOSED: Table = {
    "concurrency": COUNT, "think_time_s": Number(at_least=0, at_most=1e6), "think_time_exponential": Flag(),
}  # fmt: skip
"""Keys of a closed loop, beside those of lengths; the simulator's clock makes the arrivals."""


def check(spec: object, table: Table, where: str, required: Collection[str] = ()) -> dict[str, object]:
    """`spec` with every key known and every value allowed, whole numbers as int.

    Raises ValueError, one line, naming `where`, key, value and what is allowed.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"{where}: {shown(spec)}: a mapping with keys from: {', '.join(sorted(table))}")
    for key in spec:
        if key not in table:
            raise ValueError(f"{where}: {shown(key)}: unknown key: {hint(str(key), table)}")
    for key in required:
        if key not in spec:
            raise ValueError(f"{where}: {key}: missing: {table[key].allowed}")
    return {str(key): _checked(value, table[key], f"{where}: {key}") for key, value in spec.items()}


def _checked(value: object, rule: Rule, where: str) -> object:
    if not rule.accepts(value):
        raise ValueError(f"{where}: {shown(value)}: must be {rule.allowed}")
    if isinstance(rule, Number) and rule.inf and value == "inf":
        return math.inf
    if isinstance(rule, Number) and rule.whole and isinstance(value, int | float | np.integer):
        return int(value)
    return value


def kind_of(
    spec: object, tables: Mapping[str, Table], where: str, aliases: Mapping[str, str] | None = None
) -> tuple[str, dict[str, object]]:
    """(kind, its checked options) of `NAME` or `{kind: NAME, ...}`. Raises ValueError with a suggestion."""
    options = dict(spec) if isinstance(spec, Mapping) else {"kind": spec}
    name = options.pop("kind", None)
    kind = (aliases or {}).get(name, name) if isinstance(name, str) else name
    if not isinstance(kind, str) or kind not in tables:
        said = "missing" if name is None else shown(name)
        raise ValueError(f"{where}: kind: {said}: {hint(str(name), [*tables, *(aliases or {})])}")
    return kind, check(options, tables[kind], where)
