"""Trees that are really drafted and verified: Medusa, Hydra, SpecInfer, Sequoia, EAGLE, multi-token prediction.

Medusa (arXiv 2401.10774) with the trained heads of the shipped family; SpecInfer (2305.09781) and Sequoia (2402.12374)
with any draft model; Hydra, EAGLE, EAGLE-3, MTP and parallel layers with weights given by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.reference.checkpoint import SHIPPED, load
from sim.reference.decoding import Session, Tokens
from sim.reference.sampling import Sampler
from sim.reference.transformer import Transformer
from sim.reference.twins._tree import Judge, Path, Shape, TreeDrafter, TreeSession
from sim.reference.twins._tree_features import FeatureTree, FeatureWeights, LayerTree
from sim.reference.twins._tree_heads import HeadTree, HeadWeights, HydraTree
from sim.reference.twins._tree_model import ModelTree

WAYS = ("greedy", "specinfer", "sequoia", "typical")


@dataclass(frozen=True)
class Twin:
    """``tree``: paths of its nodes. ``drafter``: a draft model or the name of one, heads, or a feature drafter;
    "medusa" for the shipped heads, which fit the shipped primary. ``verification``: greedy (the target's own choice, at
    any temperature), specinfer, sequoia, or typical with ``epsilon`` and ``delta`` (lossy).

    Raises ValueError for a tree without parents, an unknown verification, or one that the drafter cannot serve.
    """

    tree: tuple[Path, ...] = ((0,), (1,), (0, 0))
    drafter: Transformer | HeadWeights | FeatureWeights | str = "medusa"
    verification: str = "greedy"
    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.verification not in WAYS:
            raise ValueError(f"policy tree: verification is {self.verification!r}; allowed: {', '.join(WAYS)}")
        _ = self.shape

    @property
    def shape(self) -> Shape:
        """The tree."""
        return Shape(tuple(map(tuple, self.tree)))

    def begin(self, target: Transformer, prompts: Sequence[Tokens], sampler: Sampler, seed: int) -> Session:
        """A session with the drafter that was asked for."""
        drafter = self._drafter(target, sampler, len(prompts), seed)
        judge = Judge(self.verification, self.epsilon, self.delta)
        return TreeSession(target, prompts, sampler, seed, drafter, self.shape, judge)

    def _drafter(self, target: Transformer, sampler: Sampler, sequences: int, seed: int) -> TreeDrafter:
        asked = self.drafter
        if asked == "medusa":
            asked = HeadWeights.load(SHIPPED / "medusa", target)
        if isinstance(asked, HeadWeights):
            wide = len(asked.inner) > 0 and asked.inner[0].shape[0] > asked.inner[0].shape[1]
            return (HydraTree if wide else HeadTree)(target, asked, self.shape, self.verification)
        if isinstance(asked, FeatureWeights):
            if self.verification not in ("greedy", "typical"):
                raise ValueError(
                    f"policy tree: verification is {self.verification!r}; allowed on features: greedy, typical"
                )
            kind = LayerTree if asked.join == "none" else FeatureTree
            return kind(target, asked, self.shape, sequences)
        model = load(asked) if isinstance(asked, str) else asked
        if model.shape.vocab != target.shape.vocab:
            raise ValueError(
                f"policy tree: draft {model.shape.name} has vocabulary {model.shape.vocab}, the target "
                f"{target.shape.name} {target.shape.vocab}; allowed: one vocabulary"
            )
        return ModelTree(model, self.shape, self.verification, sampler, sequences, seed)
