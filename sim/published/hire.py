"""HiRE on a 1B model and one TPU v5e: one share of time is fitted, the others follow from the bytes of the variant.

The model: 32 layers of width 1,024 and a vocabulary of 256,000 tied tokens. What is fitted is the width of its
ungated FFN, and with it the softmax's share of a step; for the FFN row, how many neurons phase 2 fetches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from sim.analytic.cost import PassCost
from sim.analytic.model import Attention, Ffn, Layer, ModelShape
from sim.analytic.work import Work
from sim.published import shapes
from sim.published.table import Published, Table
from sim.variants.hire import Hire
from sim.variants.hire_options import Phases
from sim.variants.topk import recall

D, LAYERS, VOCAB, KEEP = 1024, 32, 256_000, 32
LOW_RANK = Phases(384, KEEP, rank=0.25, bits=None)
FOUR_BITS = Phases(128, KEEP, bits=4)
BOTH = Phases(384, KEEP, rank=0.25, bits=4)
NOISE_OF_INT4 = 0.13  # of Gaussian rows under absmax: .11 to .15 of the scores' spread
RANK_ROW, BOTH_ROW = "hire-results-i-014", "hire-results-i-028"
FFN_ROW = "hire-results-ii-014"


@cache
def _gain(width: int, variant: Hire) -> float:
    """Dense seconds of a decode step over the variant's."""
    return _step_s(width) / _step_s(width, variant)


@cache
def _step_s(width: int, *variants: Hire) -> float:
    """Seconds of a decode step."""
    block = Layer(Attention(8, 8, 128, 128), Ffn(width, gated=False))
    shape = ModelShape("topk-1b", D, VOCAB, (block,) * LAYERS, tied=True)
    return float(PassCost(shape, shapes.device("tpu-v5e"), variants=variants).seconds(Work.decode(1, 64)))


def _softmax(said: Phases) -> Hire:
    return Hire(softmax=said)


def _ffn(share: float, softmax: Phases | None = None) -> Hire:
    """int4 scores of all neurons, the best ``share`` of them fetched in groups of eight."""
    return Hire(softmax=softmax, ffn=Phases(share, 0.05, group=8))


def _falling(low: float, high: float, of: Callable[[float], float], wanted: float) -> float:
    """Where a falling function reaches ``wanted``, to a hundred-thousandth."""
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) > wanted else (low, middle)
    return high


@cache
def _width(said: str, wanted: float) -> int:
    """Width of the FFN at which a softmax setting gives the printed speedup, in whole groups of eight."""
    options = {"rank": LOW_RANK, "both": BOTH}[said]
    return 8 * round(_falling(2048, 65536, lambda width: _gain(int(width), _softmax(options)), wanted) / 8)


@cache
def _share(width: int, wanted: float) -> float:
    """Share of neurons fetched at which the FFN alone gives the printed speedup."""
    return _falling(0.05, 1.0, lambda share: _gain(width, _ffn(share)), wanted)


def softmax(row: Published, table: Table) -> float:
    """The row's setting where the low-rank row fixes the softmax's share."""
    known = {"LR D=25% K=384": LOW_RANK, "int4 K=128": FOUR_BITS}
    return _gain(_width("rank", table.value(RANK_ROW)), _softmax(known.get(row.config, BOTH)))


def ffn(row: Published, table: Table) -> float:
    """The FFN alone: how much phase 2 fetches is solved from this row."""
    width = _width("both", table.value(BOTH_ROW))
    return _gain(width, _ffn(_share(width, table.value(FFN_ROW))))


def together(row: Published, table: Table) -> float:
    """FFN and softmax in one step, each as its own row says: saved time adds up."""
    width = _width("both", table.value(BOTH_ROW))
    return _gain(width, _ffn(_share(width, table.value(FFN_ROW)), BOTH))


def multiplied(row: Published, table: Table) -> float:
    """The product of the two speedups, each from its own step."""
    width = _width("both", table.value(BOTH_ROW))
    return ffn(row, table) * _gain(width, _softmax(BOTH))


def int4_recall(row: Published, table: Table) -> float:
    """How many of the true 32 best are among 128 candidates scored in four bits, Gaussian rows."""
    return KEEP * recall(NOISE_OF_INT4, 128, KEEP, VOCAB)


def fitted_recall(row: Published, table: Table) -> float:
    """The same among 384 candidates at the noise solved from this row."""
    wanted = float(row.published) / KEEP
    noise = _falling(0.05, 2.0, lambda s: recall(s, 384, KEEP, VOCAB), wanted)
    return KEEP * recall(noise, 384, KEEP, VOCAB)


def from_own(row: Published, table: Table) -> float:
    """FFN and softmax together where the softmax's share is that of the low-rank row, so that 1.22 is our own 1.21."""
    width = _width("rank", table.value(RANK_ROW))
    return _gain(width, _ffn(_share(width, table.value(FFN_ROW)), BOTH))
