"""Published trees and how often a drafter's ranks are right, by name, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sim.policies.tree_shapes import Path, Ranks

__all__ = ["RANKS", "TREES"]


def _paths(text: str) -> tuple[Path, ...]:
    """``"0 00 01"`` as paths: a digit a rank."""
    return tuple(tuple(int(rank) for rank in word) for word in text.split())


# github.com/FasterDecoding/Medusa (Apache-2.0), medusa/model/medusa_choices.py: mc_sim_7b_63, 63 nodes, depth 4.
_MEDUSA = _paths(
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 40 21 004 005 0000 "
    "011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)
# github.com/SafeAILab/EAGLE (Apache-2.0), the static tree of EAGLE-1: 25 nodes, depth 5.
_EAGLE = _paths("0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001")

TREES: Mapping[str, tuple[Path, ...]] = MappingProxyType({"medusa-63": _MEDUSA, "eagle-25": _EAGLE})


def _by_rank(*heads: tuple[float, ...]) -> Ranks:
    """From accuracies of the best 1, 2, ... by head to those of each rank."""
    return Ranks(tuple(tuple(b - a for a, b in zip((0.0, *head), head, strict=False)) for head in heads))


def _tail(firsts: tuple[float, ...], share: float, ranks: int) -> Ranks:
    """Best-rank chances as measured; of what is left, each further rank takes ``share``."""
    rest = ((1.0 - first) * share * (1.0 - share) ** j for first in firsts for j in range(ranks - 1))
    return Ranks(tuple((first, *(next(rest) for _ in range(ranks - 1))) for first in firsts))


RANKS: Mapping[str, Ranks] = MappingProxyType(
    {
        # github.com/FasterDecoding/Medusa, assets/medusa_acc.csv: Medusa-1 heads on ShareGPT, greedy, the best 1 to 5.
        "medusa-vicuna-7b": _by_rank(
            (0.5604, 0.6717, 0.7271, 0.7599, 0.7799),
            (0.3164, 0.4236, 0.4851, 0.5282, 0.5625),
            (0.2010, 0.2879, 0.3475, 0.3834, 0.4169),
            (0.1474, 0.2250, 0.2737, 0.3109, 0.3397),
            (0.1175, 0.1866, 0.2346, 0.2721, 0.2998),
        ),
        "medusa-vicuna-13b": _by_rank(
            (0.5939, 0.7053, 0.7578, 0.7925, 0.8161),
            (0.3397, 0.4400, 0.5068, 0.5465, 0.5803),
            (0.2161, 0.3085, 0.3612, 0.4030, 0.4364),
            (0.1500, 0.2317, 0.2878, 0.3234, 0.3541),
            (0.1223, 0.1957, 0.2434, 0.2791, 0.3070),
        ),
        "medusa-vicuna-33b": _by_rank(
            (0.6046, 0.7162, 0.7649, 0.7983, 0.8223),
            (0.3558, 0.4690, 0.5287, 0.5692, 0.5961),
            (0.2246, 0.3197, 0.3785, 0.4210, 0.4462),
            (0.1596, 0.2488, 0.3073, 0.3480, 0.3755),
            (0.1370, 0.2067, 0.2621, 0.2984, 0.3258),
        ),
        # github.com/Infini-AI-Lab/Sequoia, acceptance-rate-vector.pt; the pair of models is not named.
        "sequoia": Ranks(
            (
                (0.63418, 0.10795, 0.05697, 0.02249, 0.01949, 0.01499, 0.0045, 0.003, 0.01199, 0.0045, 0.0075, 0.0045,
                 0.006, 0.003, 0.0015),
            )
        ),
        # arXiv 2401.15077, table 2 (Vicuna-7B, MT-bench, greedy chain, transcribed); what further ranks take is a fit:
        # with it the 25-node tree gives the 3.98 tokens reported for it on Vicuna-13B.
        "eagle-vicuna": _tail((0.79, 0.74, 0.72, 0.73), 0.31, 5),
    }
)  # fmt: skip
