"""When a draft stops of itself: a rule looks at each drafted token and goes on while it thinks that it will be kept.

The law of a round is P(the rule lets the draft go on after token j) and, given where it stopped, P(at least k of the
tokens are kept). A token is kept with probability b, its difficulty. The rule goes on where what it sees is at least
``threshold``: with probability ``skill`` it sees b, else the b of another token. Skill 1 is an oracle, 0 a die.

Kinds: ``tokens`` {mean, concentration}: every token its own b from a Beta distribution; ``beta``: all of a round
share one (as in acceptance.py); ``iid`` {alpha}: all are alike, so that there is nothing to see; ``rule`` {go, on,
off}: measured, the share of tokens after which the rule goes on, and how often tokens are kept where it does and where
it does not; ``counts`` {tokens, rounds, drafts}: from run counts, ``drafts`` passes of the draft in ``rounds`` of the
target for so many ``tokens``; ``empirical`` (sim/policies/adaptive.py) walks along a measured text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.plugin import suggest
from sim.policies.checks import number, probability
from workloads.errors import shown

__all__ = ["KINDS", "Rule", "Stopping", "incomplete_beta", "stopping"]

Floats = NDArray[np.float64]
KEY = "policy.acceptance"


class Rule(NamedTuple):
    """What every kind is built for: longest draft, threshold, skill, whether the last token is not offered."""

    most: int
    threshold: float
    skill: float
    dropped: bool

    def go(self, above: float) -> float:
        """P(the rule goes on) where a share ``above`` of all tokens is above the threshold; a token's own place aside.

        Of a token above the threshold it is ``skill`` more.
        """
        return (1.0 - self.skill) * above


class Stopping(NamedTuple):
    """``go``: P(the rule goes on after tokens 1..j), j = 1..most; ``keep``: P(at least j tokens would be kept | it
    stopped at token s), s = 1..most + 1 (never), shape [most + 1, most].
    """

    go: Floats
    keep: Floats

    @property
    def stops(self) -> Floats:
        """P(the rule stops at token s), s = 1..most + 1; shape [most + 1]."""
        return -np.diff(self.go, prepend=1.0, append=0.0)


def stopping(spec: Any, rule: Rule) -> Stopping:
    """The law of a round. Raises ValueError naming ``policy.acceptance``."""
    if not isinstance(spec, Mapping):
        spec = {"kind": "iid", "alpha": spec}
    kind = spec.get("kind", "iid")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{KEY}.kind: {shown(kind)} is not one of {', '.join(KINDS)}{suggest(str(kind), KINDS)}")
    build, keys = KINDS[kind]
    given = set(spec) - {"kind"}
    if given != keys:
        takes = ", ".join(sorted(keys))
        raise ValueError(f"{KEY}: kind {kind} takes {takes}, got {shown(sorted(map(str, given)))}")
    return build(spec, rule)


def _by_token(rule: Rule, go: float, on: float, off: float) -> Stopping:
    """Tokens that do not depend on each other: kept with probability ``on`` where the rule goes on, else ``off``."""
    j, s = np.arange(1, rule.most + 1), np.arange(1, rule.most + 2)[:, None]
    keep = np.where(j < s, on ** np.minimum(j, s), on ** (s - 1.0) * off)
    return Stopping(go ** j.astype(np.float64), keep)


def _iid(spec: Mapping[str, Any], rule: Rule) -> Stopping:
    alpha = probability(spec["alpha"], f"{KEY}.alpha")
    return _by_token(rule, float(alpha >= rule.threshold), alpha, alpha)


def _tokens(spec: Mapping[str, Any], rule: Rule) -> Stopping:
    mean, won, lost = _beta_of(spec)
    if not (won and lost):
        return _iid({"alpha": mean}, rule)
    above, kept_above = (1.0 - incomplete_beta(rule.threshold, won + k, lost) for k in (0.0, 1.0))
    blind = rule.go(above)
    on_and_kept = rule.skill * mean * kept_above + blind * mean
    on = min(1.0, on_and_kept / above) if above else 0.0
    off = max(0.0, mean - on_and_kept) / (1.0 - above) if above < 1.0 else 0.0
    return _by_token(rule, above, on, min(1.0, off))


def _beta(spec: Mapping[str, Any], rule: Rule) -> Stopping:
    """Rounds above the threshold and rounds below it go on with different probability, token after token."""
    mean, won, lost = _beta_of(spec)
    if not (won and lost):
        return _iid({"alpha": mean}, rule)
    k = np.arange(rule.most + 1.0)  # E[b^k], all of it and the part above the threshold
    whole = np.concatenate(([1.0], np.cumprod((won + k[:-1]) / (won + lost + k[:-1]))))
    high = whole * np.array([1.0 - incomplete_beta(rule.threshold, won + n, lost) for n in k])
    low = whole - high
    blind = rule.go(float(high[0]))
    sighted = rule.skill + blind
    go = sighted ** k[1:] * high[0] + blind ** k[1:] * low[0]
    s = k[:, None]  # passes of the rule before it stopped at token s + 1
    ends = np.where(s < rule.most, np.array([1.0 - sighted]), 1.0), np.where(s < rule.most, 1.0 - blind, 1.0)
    both = sighted**s * ends[0] * high + blind**s * ends[1] * low  # [most + 1, k]
    keep = np.divide(both[:, 1:], both[:, :1], out=np.zeros((rule.most + 1, rule.most)), where=both[:, :1] > 0)
    return Stopping(go, np.minimum(keep, 1.0))


def _rule(spec: Mapping[str, Any], rule: Rule) -> Stopping:
    return _by_token(rule, *(probability(spec[name], f"{KEY}.{name}") for name in ("go", "on", "off")))


def _counts(spec: Mapping[str, Any], rule: Rule) -> Stopping:
    """Go and acceptance, the same on and off, that give these counts."""
    tokens, rounds, drafts = (number(spec[k], f"{KEY}.{k}", 1.0, 1e12) for k in ("tokens", "rounds", "drafts"))
    j = np.arange(rule.most)
    if not rounds <= drafts <= rounds * rule.most:
        allowed = f"{rounds:g} to {rounds * rule.most:g}, 1 to gamma a round"
        raise ValueError(f"{KEY}.drafts: {drafts:g} in {rounds:g} rounds; allowed: {allowed}")
    go = _root(lambda c: float((c**j).sum()) - drafts / rounds)
    offered = go ** (j + 1.0) if rule.dropped else go ** j.astype(np.float64)
    most = 1.0 + float(offered.sum())
    if not 1.0 <= tokens / rounds <= most:
        allowed = f"{rounds:g} to {rounds * most:.6g}, none or all of the drafted tokens kept"
        raise ValueError(f"{KEY}.tokens: {tokens:g} in {rounds:g} rounds; allowed: {allowed}")
    kept = _root(lambda a: float((offered * a ** (j + 1.0)).sum()) - (tokens / rounds - 1.0))
    return _by_token(rule, go, kept, kept)


KINDS: Mapping[str, tuple[Callable[[Mapping[str, Any], Rule], Stopping], set[str]]] = {
    "iid": (_iid, {"alpha"}),
    "tokens": (_tokens, {"mean", "concentration"}),
    "beta": (_beta, {"mean", "concentration"}),
    "rule": (_rule, {"go", "on", "off"}),
    "counts": (_counts, {"tokens", "rounds", "drafts"}),
}


def _beta_of(spec: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean and both parameters of a Beta distribution."""
    mean = probability(spec["mean"], f"{KEY}.mean")
    weight = number(spec["concentration"], f"{KEY}.concentration", 1e-3, 1e4)
    return mean, mean * weight, (1.0 - mean) * weight


def _root(f: Callable[[float], float]) -> float:
    """Where a function that rises over [0, 1] passes zero; 1 where it does not."""
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0.0 else (low, middle)
    return high


def incomplete_beta(x: float, a: float, b: float) -> float:
    """P(a Beta(a, b) number is at most x): the continued fraction of DLMF 8.17.22, by Lentz's method."""
    if not 0.0 < x < 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(1.0 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    fraction, c, d = 1.0, 1.0, 0.0
    for n in range(1, 2000):
        m = n // 2
        term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (1.0 + term * d)
        c = 1.0 + term / c
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(front) / (a * fraction)
