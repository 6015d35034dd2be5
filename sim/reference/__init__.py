"""The witness: small transformers run for real in NumPy, every product and every read of memory counted.

It imports nothing of the simulator but the model shape, so that the two can be compared.
"""

from sim.reference.batch import TreeMask
from sim.reference.cache import KVCache
from sim.reference.checkpoint import load
from sim.reference.meter import Meter
from sim.reference.numerics import Numerics
from sim.reference.transformer import Transformer

__all__ = ["KVCache", "Meter", "Numerics", "Transformer", "TreeMask", "load"]
