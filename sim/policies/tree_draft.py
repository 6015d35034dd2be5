"""Who drafts a tree, and which passes that takes: heads, a model, a layer on the target's states.

``heads``: Medusa, all depths at once from one state (arXiv 2401.10774); ``hydra``: a head for each depth, on every
node that has children, its input wider by the tokens so far (arXiv 2402.05109). ``model``: a pass a depth over all
nodes of that depth, so that whatever is accepted is in its cache, but for the deepest level: after a round that reached
it the next first pass takes two tokens (SpecInfer, Sequoia). ``eagle``, ``eagle3``, ``mtp``: a pass a depth over the
nodes that have children; its first one runs again over all that the round before accepted, on the target's true states
(draft-extend). ``layers``: a layer a depth beside the head, all from one state (arXiv 2404.19737).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sim.plugin import suggest
from sim.policies import Model
from sim.policies.checks import whole
from sim.policies.drafting import model_of
from sim.policies.feature import Feature
from sim.policies.heads import Heads
from sim.policies.tree_shapes import Tree
from workloads.errors import shown

__all__ = ["Drafting", "drafting"]

KEY = "policy.drafter"
Levels = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Drafting:
    """The draft passes of a round, each count for one sequence.

    ``states``: (model, rows) of passes over the target's states alone. ``levels``: (rows, logit rows) of model
    :attr:`layered` at depth 0, the root, and on; empty where no drafter has layers. ``late``: what its first pass runs
    beside the root: "none", the "last" accepted node where it is of the deepest level, or "all" accepted ones.
    ``fused``: those are fused from several layers' states first, by the model after it. ``own_kv``: as of the model.
    """

    models: tuple[str | Model, ...]
    states: tuple[tuple[int, int], ...] = ()
    levels: Levels = ()
    late: Literal["none", "last", "all"] = "none"
    fused: bool = False
    own_kv: bool = True

    @property
    def layered(self) -> int:
        """Number of the model with layers."""
        return 1


@dataclass(frozen=True)
class Level:
    """Nodes by depth, 0 the root: ``all`` of them, those that have children (``inner``), and how deep they may go."""

    all: tuple[int, ...]
    inner: tuple[int, ...]
    most_depth: int

    @classmethod
    def of(cls, tree: Tree, most_depth: int) -> Level:
        """Of a tree that is the same in every round."""
        return cls(tree.widths[:-1], tree.inner, most_depth)

    @classmethod
    def dynamic(cls, depth: int, width: int) -> Level:
        """Of trees that grow ``width`` nodes a level, then keep the best."""
        rows = (1, *(width for _ in range(depth - 1)))
        return cls(rows, rows, depth)


Options = dict[str, Any]


def drafting(said: Any, level: Level) -> Drafting:
    """What ``drafter`` asks for: a kind, or a mapping of kind and options. Raises ValueError naming key and value."""
    options: Options = dict(said) if isinstance(said, Mapping) else {"kind": said}
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{KEY}.kind: {shown(kind)} is not one of {', '.join(KINDS)}{suggest(str(kind), KINDS)}")
    build, *takes = KINDS[kind]
    for option in options:
        if option not in takes:
            has = ", ".join(takes) or "no options"
            raise ValueError(f"{KEY}.{str(option)[:40]}: unknown; {kind} takes {has}{suggest(str(option), takes)}")
    found: Drafting = build(options, level)
    return found


def _heads(options: Options, level: Level) -> Drafting:
    count = whole(options.get("count", level.most_depth), f"{KEY}.count", 1, 64)
    if count < len(level.inner):
        raise ValueError(f"{KEY}.count: {count} heads, the tree is {len(level.inner)} deep; needs one a depth")
    products = whole(options.get("products", 1), f"{KEY}.products", 1, 8)
    heads = Heads(count, ((1, 1),) * products, _flag(options, "norm"), _flag(options, "share_vocabulary"))
    return Drafting((Model(None, (heads,)),), states=((1, 1),))


def _hydra(options: Options, level: Level) -> Drafting:
    shared = _flag(options, "share_vocabulary")
    models = tuple(Model(None, (Heads(1, ((2 + d, 1),), False, shared),)) for d in range(level.most_depth))
    return Drafting(models, states=tuple((d + 1, rows) for d, rows in enumerate(level.inner)))


def _model(options: Options, level: Level) -> Drafting:
    if "draft" not in options:
        raise ValueError(f"{KEY}.draft: missing; model needs the name or path of one")
    model = model_of(options["draft"], f"{KEY}.draft")
    own = not isinstance(model, Model) or model.own_kv
    return Drafting((model,), levels=tuple(zip(level.all, level.inner, strict=True)), late="last" if own else "none",
                    own_kv=own)  # fmt: skip


def _eagle(options: Options, level: Level) -> Drafting:
    return _features(Feature(vocabulary=_vocabulary(options)), level)


def _mtp(options: Options, level: Level) -> Drafting:
    return _features(Feature(norms=2, dense=False), level)


def _eagle3(options: Options, level: Level) -> Drafting:
    fuse = Model(None, (Heads(1, ((3, 1),), logits=False),))
    return _features(Feature(join="wide", norms=1, vocabulary=_vocabulary(options)), level, fuse)


def _features(feature: Feature, level: Level, *fuse: Model) -> Drafting:
    levels = tuple((inner, inner) for inner in level.inner)
    return Drafting((Model(None, (feature,)), *fuse), levels=levels, late="all", fused=bool(fuse))


def _layers(options: Options, level: Level) -> Drafting:
    count = whole(options.get("count", level.most_depth), f"{KEY}.count", 1, 64)
    if count < len(level.inner):
        raise ValueError(f"{KEY}.count: {count} layers, the tree is {len(level.inner)} deep; needs one a depth")
    feature = Feature(count, join="none", dense=False)
    return Drafting((Model(None, (feature,)),), levels=((1, count),), late="all")


KINDS: Mapping[str, tuple[Any, ...]] = {
    "heads": (_heads, "count", "products", "norm", "share_vocabulary"),
    "hydra": (_hydra, "share_vocabulary"),
    "model": (_model, "draft"),
    "eagle": (_eagle, "vocabulary"),
    "eagle3": (_eagle3, "vocabulary"),
    "mtp": (_mtp,),
    "layers": (_layers, "count"),
}


def _flag(options: Options, name: str) -> bool:
    said = options.get(name, False)
    if not isinstance(said, bool):
        raise ValueError(f"{KEY}.{name}: {shown(said)} is not true or false")
    return said


def _vocabulary(options: Options) -> int | None:
    said = options.get("vocabulary")
    return None if said is None else whole(said, f"{KEY}.vocabulary", 2, 1 << 24)
