"""Acceptance of drafted tokens as a survival vector: s_k = P(at least k of the drafted tokens are kept).

A number or ``{kind: iid, alpha}``: s_k = alpha^k (Leviathan et al. 2023, section 3.1). ``{kind: survival, vector}``:
measured, as vLLM prints it by position. ``{kind: beta, mean, concentration}``: all positions of a round share one
acceptance rate drawn from a Beta distribution, so that s_k = prod (mean*c + i)/(c + i), i < k, and hazards rise.
``{kind: decaying, first or mean, decay}``: hazards fall, s_k / s_(k-1) = first * decay^(k-1); a ``mean`` of the vector
finds ``first``, as vLLM's synthetic sampler does (its PR 38045). ``{kind: length, tokens}``: a mean accept length, the
target's own token included, as near to a constant as it can be: SGLang's SIMULATE_ACC_LEN (match-expected), vLLM's
synthetic_acceptance_length. ``{kind: context, points}``: any of these at some contexts, mixed between them.
``{kind: empirical, betas}``: measured token by token along a text (a CSV file, a shipped pair such as
``primary--drafter``, or a list): a sequence starts somewhere in it and walks along as its own tokens come out, keeping
draft t with probability beta_t; easy and hard places follow each other as they did in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.plugin import suggest
from sim.policies.by_context import ByContext
from sim.policies.checks import number, probability, whole
from workloads import acceptance as measured
from workloads.errors import shown

if TYPE_CHECKING:
    from sim.policies import Draws

MOST_TOKENS = 200_000
MOST_POINTS = 1000
LEAST_DECAY = 0.85
"""Decay where only a mean is given: what well-tuned drafts show, says vLLM's PR 38045; nearer to 1 if it must be."""

Vector = NDArray[np.float64]
SAME = ("iid", "survival", "beta", "decaying", "length")
"""Kinds that are the same in every round."""


def survival_vector(spec: Any, gamma: int, key: str = "policy.acceptance", kinds: Sequence[str] = ()) -> Vector:
    """P(at least k of gamma drafts kept), k = 1..gamma; shape [gamma], not increasing.

    Of kind ``context``: what a long sequence settles at. ``kinds``: those that a policy takes, all where empty. Raises
    ValueError naming ``key`` and what is allowed.
    """
    if not isinstance(spec, Mapping):
        spec = {"kind": "iid", "alpha": spec}
    allowed = {kind: KINDS[kind] for kind in kinds or KINDS}
    kind = spec.get("kind", "iid")
    if not isinstance(kind, str) or kind not in allowed:
        hint = suggest(str(kind), allowed)
        raise ValueError(f"{key}.kind: {shown(kind)} is not one of {', '.join(allowed)}{hint}")
    build, *options = allowed[kind]
    given = set(spec) - {"kind"}
    if given not in options:
        takes = " or ".join(", ".join(sorted(one)) for one in options)
        raise ValueError(f"{key}: kind {kind} takes {takes}, got {shown(sorted(map(str, given)))}")
    vector: Vector = build(spec, gamma, key)
    return vector


def kept_under(survival: NDArray[np.float64], coins: NDArray[np.float64]) -> NDArray[np.int64]:
    """Drafts kept in each round: how many places survive its uniform; ``survival`` not increasing, shape of coins."""
    return np.searchsorted(-survival, -coins, side="left")


def _iid(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    return np.cumprod(np.full(gamma, probability(spec["alpha"], f"{key}.alpha")))


def _measured(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    vector = spec["vector"]
    if not isinstance(vector, list | tuple) or len(vector) < gamma:
        wanted = f"a list of at least gamma = {gamma} probabilities"
        raise ValueError(f"{key}.vector: needs {wanted}, got {shown(vector)}")
    values = np.array([probability(v, f"{key}.vector[{i}]") for i, v in enumerate(vector)])
    if np.any(np.diff(values) > 0):
        raise ValueError(f"{key}.vector: {shown(vector)} rises; P(at least k kept) cannot")
    return values[:gamma]


def _beta(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    mean, weight = probability(spec["mean"], f"{key}.mean"), spec["concentration"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight < float("inf"):
        raise ValueError(f"{key}.concentration: {shown(weight)} is not a positive number")
    i = np.arange(gamma)
    return np.asarray(np.cumprod((mean * weight + i) / (weight + i)), dtype=np.float64)


def _decaying(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    decay = number(spec["decay"], f"{key}.decay", 0.0, 1.0) if "decay" in spec else LEAST_DECAY
    if "first" in spec:
        return _falling(probability(spec["first"], f"{key}.first"), decay, gamma)
    mean = probability(spec["mean"], f"{key}.mean")
    if _falling(1.0, decay, gamma).mean() < mean:
        if "decay" in spec:
            most = float(_falling(1.0, decay, gamma).mean())
            raise ValueError(f"{key}.mean: {mean:g} is out of reach of decay {decay:g}; allowed: up to {most:.4f}")
        decay = _rising_root(lambda d: float(_falling(1.0, d, gamma).mean()) - mean)
        return _falling(1.0, decay, gamma)
    return _falling(_rising_root(lambda first: float(_falling(first, decay, gamma).mean()) - mean), decay, gamma)


def _falling(first: float, decay: float, gamma: int) -> Vector:
    return np.cumprod(first * decay ** np.arange(gamma))


def _rising_root(f: Callable[[float], float]) -> float:
    """Where a function that rises over [0, 1] and is not negative at 1 passes zero."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0.0 else (low, middle)
    return high


def _length(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    tokens = number(spec["tokens"], f"{key}.tokens", 1.0, gamma + 1.0)
    return np.clip(tokens - np.arange(1, gamma + 1), 0.0, 1.0)


# -- acceptance that was measured with lenience


def at_lenience(spec: Any, lenience: float, key: str = "policy.acceptance") -> Any:
    """The acceptance measured with ``lenience`` where ``spec`` says several: ``{kind: lenient, measured: [...]}``.

    Entries are ``{lenience, acceptance}``. Lenience 1 takes any other kind as it is; below 1 nothing but a measurement
    will do, as sum(min(p / lenience, q)) needs both distributions. Raises ValueError naming ``key``.
    """
    if not isinstance(spec, Mapping) or spec.get("kind") != "lenient":
        if lenience < 1.0:
            wanted = f"{{kind: lenient, measured: [{{lenience: {lenience:g}, acceptance: ...}}]}}"
            raise ValueError(f"policy.lenience: {lenience:g} needs an acceptance measured with it: {key} = {wanted}")
        return spec
    entries = spec.get("measured")
    if not isinstance(entries, list | tuple) or not all(_is_entry(entry) for entry in entries):
        raise ValueError(f"{key}.measured: {shown(entries)} is not a list of lenience and acceptance")
    known = {number(entry["lenience"], f"{key}.measured.lenience", 0.0, 1.0): entry["acceptance"] for entry in entries}
    if lenience not in known:
        has = ", ".join(f"{at:g}" for at in sorted(known)) or "nothing"
        raise ValueError(f"policy.lenience: {lenience:g} is not among those measured: {key} has {has}")
    return known[lenience]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, Mapping) and set(entry) == {"lenience", "acceptance"}


# -- acceptance that moves as a sequence goes on


def _settled(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    law = by_context(spec, gamma, key)
    assert law is not None
    return np.array(law.vectors[-1])


def by_context(spec: Any, gamma: int, key: str = "policy.acceptance") -> ByContext | None:
    """The law of a ``context`` acceptance; None for kinds that do not ask for the context. Raises ValueError."""
    if not isinstance(spec, Mapping) or spec.get("kind") != "context":
        return None
    points = spec.get("points")
    if not isinstance(points, Mapping) or not 1 <= len(points) <= MOST_POINTS:
        what = f"a mapping of 1 to {MOST_POINTS} contexts to an acceptance"
        raise ValueError(f"{key}.points: {shown(points)} is not {what}")
    known = {_tokens(at, f"{key}.points"): said for at, said in points.items()}
    if len(known) < len(points):
        raise ValueError(f"{key}.points: {shown(sorted(map(str, points)))} names a context twice")
    contexts = tuple(sorted(known))
    vectors = (survival_vector(known[at], gamma, f"{key}.points[{at}]", SAME) for at in contexts)
    return ByContext(contexts, tuple(tuple(v.tolist()) for v in vectors))


def _tokens(said: Any, key: str) -> int:
    """A context as YAML gives it: a number, or its digits."""
    digits = isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < 10
    return whole(int(said) if digits else said, key, 0, 10**9)


@dataclass(frozen=True, eq=False)
class Walk:
    """A text's acceptance probabilities, laid in a ring; its length is ``tokens``.

    A round that starts at place t keeps draft k = 0, 1, ... with probability beta at t + k, until one is lost; the next
    round starts after the kept drafts and the target's own token. On text drawn from the target this reproduces
    speculative sampling (exact acceptance replay: sim/reference/replay.py gives the derivation).
    """

    betas: Sequence[float]
    gamma: int
    _ring: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Lay the text out once more beyond its end, so that a round never has to look back to the start."""
        laps = 1 + -(-self.gamma // len(self.betas))
        object.__setattr__(self, "_ring", (list(self.betas) * laps)[: len(self.betas) + self.gamma])

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return len(self.betas)

    def first(self, draws: Draws) -> int:
        """Where a sequence's walk begins: at an addressed place of the text."""
        return int(draws.uniforms("offset", 0, 1)[0] * self.tokens)

    def kept(self, offset: int, coins: Sequence[float]) -> list[int]:
        """Drafts kept in each round from place ``offset`` on, one uniform a round against the survival there."""
        ring, gamma, tokens = self._ring, self.gamma, len(self.betas)
        at, out = offset, []
        for coin in coins:
            kept, survival = 0, 1.0
            while kept < gamma:
                survival *= ring[at + kept]
                if coin >= survival:
                    break
                kept += 1
            out.append(kept)
            at = (at + kept + 1) % tokens
        return out

    def survival(self) -> Vector:
        """P(at least k kept), k = 1..gamma, over rounds of long sequences that start anywhere; shape [gamma].

        Every place weighs as often as a round starts there; the weights are carried along the ring once, after as many
        places as it takes to forget the start.
        """
        windows = np.lib.stride_tricks.sliding_window_view(np.array(self._ring), self.gamma)[: self.tokens]
        alive = np.cumprod(windows, axis=1)
        ends = -np.diff(alive, axis=1, prepend=1.0, append=0.0)  # P(keep exactly k), k = 0..gamma
        settle = 64 * (self.gamma + 1)
        weight = np.zeros(settle + self.tokens + self.gamma + 1)
        weight[: self.gamma + 1] = 1.0
        for t in range(settle + self.tokens):
            weight[t + 1 : t + self.gamma + 2] += weight[t] * ends[(t - settle) % self.tokens]
        starts = weight[settle : settle + self.tokens]
        return np.asarray(np.minimum.accumulate((starts @ alive) / starts.sum()))


def walk(spec: Any, gamma: int, key: str = "policy.acceptance") -> Walk | None:
    """The walk of an ``empirical`` acceptance; None for kinds that are the same everywhere. Raises ValueError."""
    if not isinstance(spec, Mapping) or spec.get("kind") != "empirical":
        return None
    said = spec["betas"]
    if isinstance(said, str):
        try:
            betas = measured.load(said).tolist()
        except ValueError as error:
            raise ValueError(f"{key}.betas: {error}") from None
    elif isinstance(said, list | tuple):
        betas = [probability(value, f"{key}.betas[{i}]") for i, value in enumerate(said[: MOST_TOKENS + 1])]
    else:
        raise ValueError(f"{key}.betas: {shown(said)} is not a CSV file, a measured pair or a list")
    if not 1 <= len(betas) <= MOST_TOKENS:
        raise ValueError(f"{key}.betas: {len(betas)} tokens; allowed: 1 to {MOST_TOKENS}")
    return Walk(betas, gamma)


def _empirical(spec: Mapping[str, Any], gamma: int, key: str) -> Vector:
    along = walk(spec, gamma, key)
    assert along is not None
    return along.survival()


KINDS: Mapping[str, tuple[Any, ...]] = {
    "iid": (_iid, {"alpha"}),
    "survival": (_measured, {"vector"}),
    "beta": (_beta, {"mean", "concentration"}),
    "decaying": (_decaying, {"first", "decay"}, {"mean", "decay"}, {"mean"}),
    "length": (_length, {"tokens"}),
    "context": (_settled, {"points"}),
    "empirical": (_empirical, {"betas"}),
}
"""How each kind makes its vector, and which options go together."""
