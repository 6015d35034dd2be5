"""What the tables of the Tandem paper obey: prefill that nothing accelerates, and what standalone mode loses.

Tandem Transformers (arXiv 2402.08644v3). Decode-only speedups (tables 8, 9) become end-to-end ones (tables 2, 4)
through the share of the baseline's time that prefill takes: Amdahl's law. One share a dataset explains all its rows.
"""

from __future__ import annotations

from sim.policies.checks import number
from sim.quality import Quality

__all__ = ["BLOCK_OF_3", "OTHER_BLOCKS", "end_to_end", "prefill_share"]

BLOCK_OF_3 = Quality(
    23.48, "generative tasks 57.5 -> 44.0, PaLM2-Bison with a Gecko secondary, gamma 3; SuperGLUE loses 3.3 %",
    "arXiv 2402.08644v3, table 3",
)  # fmt: skip
OTHER_BLOCKS = Quality(None, "unknown: the secondary writes most of the output", "no published table for this gamma")


def end_to_end(speedup: float, prefill_share: float) -> float:
    """Speedup with prefill from that of decoding alone: 1 / (f + (1 - f) / S), f the baseline's share of prefill.

    Raises ValueError for a speedup that is not positive, or a share outside [0, 1].
    """
    share = number(prefill_share, "prefill_share", 0.0, 1.0)
    return 1.0 / (share + (1.0 - share) / number(speedup, "speedup", 1e-9, 1e9))


def prefill_share(decode: float, whole: float) -> float:
    """The share f that turns a decode-only speedup into the end-to-end one: (1/whole - 1/decode) / (1 - 1/decode).

    Raises ValueError unless 1 <= whole <= decode and decode > 1.
    """
    number(decode, "decode", 1.0 + 1e-9, 1e9)
    number(whole, "whole", 1.0, decode)
    return (1.0 / whole - 1.0 / decode) / (1.0 - 1.0 / decode)
