"""One way of decoding, twice: a twin that really runs and the simulator's policy for it, beside the models they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sim.analytic.model import ModelShape
from sim.analytic.rewrite import apply
from sim.policies import Future, Model, Policy, Windows
from sim.policies.tree import Tree
from sim.reference.decoding import Generation, Session, Tokens, decode
from sim.reference.sampling import Sampler, stream
from sim.reference.transformer import Transformer
from sim.reference.twins.retrieval import TreeSession
from sim.validation.counts import Tally, added, decoded, happened, measured, simulated
from sim.validation.equivalents import MEDUSA, Runs, equivalent, is_self
from sim.variants import build as build_variants

LIMITS = (20, 3, 31)
PROMPTS = (9, 4, 17)


@dataclass(frozen=True)
class Member:
    """A model of a policy: its shape before ``variants``, and what stands before the names of its ops."""

    shape: ModelShape
    variants: tuple[Any, ...] = ()
    prefix: str = ""

    @property
    def windows(self) -> Windows:
        """Attention kinds of what is left of it."""
        return tuple(apply(self.variants, "reshape", self.shape).windows)

    def counts(self, works: Sequence[Any]) -> Tally:
        """What the simulator counts of these passes."""
        return simulated(self.shape, works, self.prefix, variants=self.variants)


@dataclass(frozen=True)
class Case:
    """Policy ``name`` really run by ``twin``. ``about``: what a row says of models and options.

    ``draft``: the model beside the target, None where there is none or it is made of the target; ``greedy``: the twin
    does not sample, or is not asked to; ``lossless``: exactly the target's output.
    """

    name: str
    about: str
    twin: Any
    target: Transformer
    draft: Transformer | None = None
    greedy: bool = False
    lossless: bool = True
    policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", equivalent(self.name, self.twin))

    @property
    def sampler(self) -> Sampler:
        """Greedy, or temperature 1."""
        return Sampler(0) if self.greedy else Sampler()

    @property
    def models(self) -> list[Transformer]:
        """The target and, where there is one with a meter of its own, the draft."""
        apart = self.draft is not None and self.draft.meter is not self.target.meter
        return [self.target, *([self.draft] if apart and self.draft is not None else [])]

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The models of the policy in its order, the target first."""
        return (Member(self.target.shape), *(self._member(draft) for draft in self.policy.drafts))

    def _member(self, said: str | Model) -> Member:
        variants = build_specs(said.variants) if isinstance(said, Model) else ()
        beside = [v for v in variants if hasattr(v, "beside")]
        variants = tuple(v.beside(self.target.shape) if v in beside else v for v in variants)
        if self.name == "blockwise" and self.twin.heads == "medusa":
            variants = _trained_heads(self.twin.block - 1)
        own = self.target.shape if is_self(said) and self.draft is None else self._drafted
        return Member(own, variants, "" if beside else "draft.")

    @property
    def _drafted(self) -> ModelShape:
        assert self.draft is not None, f"{self.name}: a draft is needed"
        return self.draft.shape

    def counts(self, runs: Runs, futures: Sequence[Future] | None = None) -> Tally:
        """What the simulator counts of rounds that happened."""
        windows = tuple(member.windows for member in self.members)
        passes = list(decoded(self.policy, runs, windows, futures))
        return added(*(m.counts([w for i, w in passes if i == k]) for k, m in enumerate(self.members)))

    def run(self, prompts: Sequence[Tokens], limits: int | Sequence[int], seed: int = 0) -> Ran:
        """Decode for real, from meters at zero."""
        for model in self.models:
            model.meter.reset()
        noting = Noting(self.twin)
        runs = decode(noting, self.target, prompts, limits, sampler=self.sampler, seed=seed)
        return Ran(runs, added(*(measured(model.meter) for model in self.models)), noting.futures(runs))


@dataclass(frozen=True)
class Ran:
    """Texts, what the meters read, and what the simulator calls the futures of these texts."""

    texts: list[Generation]
    read: Tally
    futures: list[Future]


def of_case(case: Case, seed: int = 0) -> tuple[Tally, Tally]:
    """A ragged batch decoded: what the simulator counts of its rounds, and what the meters read."""
    vocab = case.target.shape.vocab
    ran = case.run([stream(seed, "prompt", i).integers(0, vocab, n) for i, n in enumerate(PROMPTS)], LIMITS, seed)
    return case.counts(ran.texts, ran.futures), ran.read


@dataclass
class Noting:
    """A twin that remembers its session, for what rounds do not say: the trees that a store gave."""

    twin: Any
    session: Session | None = None

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """The twin's own session."""
        self.session = self.twin.begin(target, prompts, sampler, seed)
        return self.session

    def futures(self, runs: Runs) -> list[Future]:
        """As rounds say, with nodes by depth where trees differ; without a free token every token was drafted."""
        out = [happened(g) for g in runs]
        if isinstance(self.session, TreeSession):
            return [f._replace(noted=noted) for f, noted in zip(out, widths(self.session, runs), strict=True)]
        if not getattr(self.twin, "free_token", True):
            return [f._replace(gains=f.kept, offsets=np.cumsum(f.kept) - f.kept) for f in out]
        return out


def widths(session: TreeSession, runs: Runs) -> Iterator[Any]:
    """Nodes by depth of every decode round of each run, [rounds, depth]."""
    deepest = max((len(tree.widths) for trees in session.trees for tree in trees), default=1)
    for run, trees in zip(runs, session.trees, strict=True):
        own = [[*t.widths, *[0] * (deepest - len(t.widths))] for t in trees[: len(run.rounds) - 1]]
        yield np.array(own, dtype=np.int64).reshape(-1, deepest)


def build_specs(specs: Sequence[Any]) -> tuple[Any, ...]:
    """Variants of a draft, those said as in a scenario built."""
    return tuple(build_variants([v])[0] if isinstance(v, str | Mapping) else v for v in specs)


def _trained_heads(count: int) -> tuple[Any, ...]:
    """The family's heads as the simulator writes them: two products and the target's norm, one vocabulary."""
    [heads] = Tree([[0]], [0.5], {**MEDUSA, "count": count}).drafts
    assert isinstance(heads, Model)
    return heads.variants
