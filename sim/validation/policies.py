"""The cases of every policy: trained models of the shipped family where there are some, untrained ones where not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from sim.reference.sampling import stream
from sim.reference.transformer import Transformer
from sim.reference.twins import (
    adaptive,
    autoregressive,
    bigram,
    bild,
    blockwise,
    input_copy,
    load_adaptive,
    ngram,
    plan,
    retrieval,
    speculative,
    tandem,
    tree,
)
from sim.reference.twins._secondary import Secondary, load_secondary
from sim.reference.twins._tree_heads import HeadWeights
from sim.reference.variants import matformer
from sim.validation.cases import Case
from sim.validation.models import named
from sim.validation.stand_in import dense, stand_in
from sim.validation.untrained import FEATURES, features

BUSHY = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0))
WIDE = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0))
UNTRAINED = "untrained"
FAMILY = "primary <- drafter"
TINY_TEXT = (1, 2, 3, 0, 1, 3, 2, 2, 0, 3, 1, 1, 2, 0)


@cache
def model(name: str, exact: bool = False) -> Transformer:
    """A member of the family, loaded once; ``exact``: rows that do not depend on how many there are."""
    return named(name, exact)


@cache
def secondary(exact: bool = False) -> Secondary:
    """The family's secondary of a tandem."""
    return load_secondary("tandem", exact=exact)


def small(window: int | None = None) -> Transformer:
    """An untrained target over twelve tokens, flat enough that drafts are sometimes right."""
    return stand_in(dense(16, 3, 4, 2, 24, 12, window=window), 0)


def trained(exact: bool = False) -> Iterator[Case]:
    """On the shipped family, with the same arithmetic for one row as for many if ``exact``."""
    primary, drafter = model("primary", exact), model("drafter", exact)
    said = tuple(stream(0, "store").integers(0, primary.shape.vocab, 400).tolist())
    yield Case("autoregressive", "primary", autoregressive.Twin(), primary)
    yield Case("speculative", f"{FAMILY}, gamma 4", speculative.Twin(drafter), primary, drafter)
    yield Case("adaptive", f"{FAMILY}, entropy", adaptive.Twin(drafter, 4, 0.2, "entropy"), primary, drafter)
    dropped = adaptive.Twin(drafter, 4, 0.2, "confidence", "dropped")
    yield Case("adaptive", f"{FAMILY}, confidence, last token dropped", dropped, primary, drafter)
    for off in ("fed", "idle"):
        tiers = load_adaptive.Twin(drafter, ((1, 4), (2, 2), (3, 0)), off=off)
        yield Case("load_adaptive", f"{FAMILY}, {off} while off", tiers, primary, drafter)
    yield Case("bigram", "primary, counted on its training text", bigram.Twin(3), primary)
    yield Case("ngram", "primary, copies of 4", ngram.Twin(4, whole=True), primary)
    yield Case("retrieval", "primary, a store of 400 tokens", retrieval.Twin(7, 3, 4, said), primary)
    yield Case("input_copy", "primary, copies of 5", input_copy.Twin(5, 1), primary)
    lossy = bild.Twin(drafter, 4, 0.35, 3.0)
    yield Case("bild", FAMILY, lossy, primary, drafter, greedy=True, lossless=False)
    yield Case("blockwise", "primary, trained heads", blockwise.Twin(4), primary, greedy=True)
    yield Case("tree", "primary, Medusa's trained heads", tree.Twin(BUSHY), primary)
    typical = tree.Twin(BUSHY, verification="typical")
    yield Case("tree", "primary, Medusa's trained heads, typical acceptance", typical, primary, lossless=False)
    yield from tandems(primary, secondary(exact))
    target = model("matformer", exact)
    draft = matformer.twin(target, "S")
    yield Case("speculative", "matformer <- its S on one cache", speculative.Twin(draft, 3, shared=True), target, draft)


def tandems(primary: Transformer, writer: Secondary) -> Iterator[Case]:
    """All modes of a tandem, and the plan."""
    yield Case("tandem", "primary <- secondary, judged blocks", tandem.Twin(writer), primary, writer)
    yield Case("tandem", "primary <- secondary, adaptive blocks", tandem.Twin(writer, stop=0.3), primary, writer)
    for free in (True, False):
        alone, what = tandem.Twin(writer, 3, "standalone", free), "with" if free else "without"
        about = f"standalone, {what} the free token"
        yield Case("tandem", about, alone, primary, writer, greedy=True, lossless=False)
    yield Case("plan", "primary, then secondary", plan.Twin(writer, 5), primary, writer, greedy=True, lossless=False)


def untrained() -> Iterator[Case]:
    """What the family does not have: attention windows, more drafters of trees; for counts and losslessness alone."""
    target, draft = small(), stand_in(dense(8, 2, 2, 1, 12, 12), 1)
    near, its = small(5), stand_in(dense(8, 2, 2, 1, 12, 12, window=4), 1)
    yield Case("speculative", f"{UNTRAINED}, windows, gamma 3", speculative.Twin(its, 3), near, its)
    yield Case("ngram", f"{UNTRAINED}, windows", ngram.Twin(3), near)
    for way in ("specinfer", "sequoia"):
        yield Case("tree", f"{UNTRAINED} draft, {way}", tree.Twin(BUSHY, draft, way), target, draft)
        yield Case("tree", f"{UNTRAINED} draft, windows, {way}", tree.Twin(BUSHY, its, way), near, its)
    hydra = HeadWeights.untrained(target, 3, wide=True)
    yield Case("tree", f"{UNTRAINED} Hydra heads", tree.Twin(BUSHY, hydra), target)
    for kind in FEATURES:
        yield Case("tree", f"{UNTRAINED} {kind} drafter", tree.Twin(BUSHY, features(target, kind)), target)
    for everywhere in (True, False):
        heads = blockwise.Twin(4, "untrained", everywhere)
        about = f"{UNTRAINED} heads {'on all rows' if everywhere else 'on one row'}"
        yield Case("blockwise", about, heads, target, greedy=True)


def tiny(target: Transformer, draft: Transformer, writer: Secondary) -> Iterator[Case]:
    """Over four tokens, small enough to enumerate: every policy that samples without loss."""
    for gamma in (1, 3):
        yield Case("speculative", f"gamma {gamma}", speculative.Twin(draft, gamma), target, draft)
    yield Case("adaptive", "confidence", adaptive.Twin(draft, 3, 0.45), target, draft)
    yield Case("adaptive", "dropped", adaptive.Twin(draft, 3, 0.5, "entropy", "dropped"), target, draft)
    yield Case("load_adaptive", "gamma 2", load_adaptive.Twin(draft, ((1, 2),)), target, draft)
    yield Case("bigram", "gamma 2", bigram.Twin(2, 2, TINY_TEXT), target)
    yield Case("ngram", "copies of 2", ngram.Twin(2, shortest=1, whole=True), target)
    yield Case("retrieval", "6 nodes", retrieval.Twin(6, 3, 2, TINY_TEXT), target)
    yield Case("input_copy", "its own prompt", input_copy.Twin(2, 1), target)
    for way in ("greedy", "specinfer", "sequoia"):
        yield Case("tree", way, tree.Twin(WIDE, draft, way), target, draft)
    yield Case("tree", "heads", tree.Twin(WIDE, HeadWeights.untrained(target, 2)), target)
    yield Case("tree", "eagle", tree.Twin(WIDE, features(target, "eagle")), target)
    yield Case("tandem", "judged blocks", tandem.Twin(writer, 3), target, writer)


def tiny_secondary(primary: Transformer, seed: int = 1) -> Secondary:
    """An untrained secondary over four tokens that reads a two-layer primary's first and last layers."""
    base = stand_in(dense(8, 2, 2, 1, 16, 4), seed)
    luck, size = stream(seed, "projections"), (primary.shape.d_model, 8)
    matrices = tuple((luck.standard_normal(size) / size[0] ** 0.5).astype(np.float32) for _ in base.shape.layers)
    layers = (1, len(primary.shape.layers))
    return Secondary(base.shape, base.numerics, base.weights, projections=matrices, layer_map=layers)
