"""How a matrix is stored in few bits: codes, and the scales, zero points or tables that turn them into numbers.

Linear grids: q = round(x / s) + z. Codebooks: NF4 (arXiv 2305.14314, section 3), k-means (arXiv 1510.00149, section 3),
FP4 in blocks (OCP microscaling v1.0, NVFP4), FP8 e4m3 (arXiv 2209.05433), ternary (arXiv 2402.17764).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, erf, sqrt

from sim.plugin import suggest
from workloads.errors import shown

__all__ = ["CODEBOOKS", "Grid", "gaussian_noise"]


@dataclass(frozen=True)
class Codebook:
    """What a kind of code needs: its widths, the bits of one scale, FLOPs to decode a number, its narrow arithmetic."""

    widths: tuple[int, ...]
    scale_bits: int
    decode_flops: int
    multiplies: str | None


# A look-up counts as one FLOP, a multiplication by the scale as another. A k-means table has its scale inside.
CODEBOOKS = {
    "linear": Codebook(tuple(range(2, 9)), 16, 1, "int"),
    "ternary": Codebook((2,), 32, 1, "int"),
    "fp8": Codebook((8,), 32, 1, "fp"),
    "fp4": Codebook((4,), 8, 2, "fp"),
    "nf4": Codebook((4,), 32, 2, None),
    "kmeans": Codebook(tuple(range(1, 9)), 0, 1, None),
}
TABLE_ENTRY_BITS = 32
SECOND_SCALES, SECOND_SCALE_BITS, FIRST_SCALE_BITS = 256, 32, 8  # double quantization of QLoRA, section 3


@dataclass(frozen=True)
class Grid:
    """A matrix [k, n] of ``bits`` codes; one unit of scale (zero point, table) for the tensor, column or group.

    ``group``: "tensor", "channel" (a column of n: all its k inputs), or that many inputs of a column.
    ``zero_point``: of ``bits`` bits a unit. ``double``: scales are 8-bit numbers with a float scale for 256 of them.
    """

    bits: int
    group: int | str = "channel"
    codebook: str = "linear"
    zero_point: bool = False
    double: bool = False

    @property
    def scale_bits(self) -> int:
        """Bits of one unit's scale, or of its table."""
        if self.codebook == "kmeans":
            return TABLE_ENTRY_BITS << self.bits
        return FIRST_SCALE_BITS if self.double else CODEBOOKS[self.codebook].scale_bits

    @property
    def decode_flops(self) -> int:
        """FLOPs that turn a code into a number of the wide format."""
        return CODEBOOKS[self.codebook].decode_flops + self.zero_point

    def units(self, k: int, n: int) -> int:
        """Scales (zero points, tables) of a matrix [k, n]."""
        if isinstance(self.group, int):
            return ceil(k / self.group) * n
        return n if self.group == "channel" else 1

    def matrix_bytes(self, k: int, n: int) -> int:
        """Bytes of a matrix [k, n]: codes, scales and zero points, each packed to whole bytes."""
        units = self.units(k, n)
        second = ceil(units / SECOND_SCALES) * SECOND_SCALE_BITS // 8 if self.double else 0
        zeros = ceil(units * self.bits / 8) if self.zero_point else 0
        return ceil(k * n * self.bits / 8) + units * self.scale_bits // 8 + zeros + second

    @property
    def spelled(self) -> str:
        """The number format of this grid (sim.analytic.precision): bits, with those of a group's unit."""
        if not isinstance(self.group, int):
            return f"{self.bits}bit"
        shared, block = self.scale_bits + self.bits * self.zero_point, self.group
        if self.double:
            shared, block = shared * SECOND_SCALES + SECOND_SCALE_BITS, block * SECOND_SCALES
        return f"{self.bits}bit+{shared}/{block}"


def check_grid(key: str, grid: Grid) -> Grid:
    """The grid itself. Raises ValueError naming ``key``, value and what is allowed."""
    if grid.codebook not in CODEBOOKS:
        near = suggest(grid.codebook, CODEBOOKS)
        raise ValueError(f"{key}.codebook: {shown(grid.codebook)}: must be one of {', '.join(CODEBOOKS)}{near}")
    widths = CODEBOOKS[grid.codebook].widths
    if type(grid.bits) is not int or grid.bits not in widths:  # True and 2.0 are equal to widths, but are none
        raise ValueError(f"{key}: {shown(grid.bits)}: bits of {grid.codebook} codes are {', '.join(map(str, widths))}")
    sized = isinstance(grid.group, int) and not isinstance(grid.group, bool) and 1 <= grid.group <= 4096
    if not sized and grid.group not in ("tensor", "channel"):
        raise ValueError(f"{key}.group: {shown(grid.group)}: must be tensor, channel or a whole number from 1 to 4096")
    if not isinstance(grid.zero_point, bool) or (grid.zero_point and grid.codebook != "linear"):
        raise ValueError(f"{key}.zero_point: {shown(grid.zero_point)}: must be true or false, true for linear only")
    return grid


def gaussian_noise(bits: int, group: int) -> float:
    """Relative RMS error of absmax rounding of Gaussian numbers, ``group`` of them to a scale.

    The step is max|x| / (2^(bits-1) - 1), its error uniform: sqrt(E[max^2] / 12) / (2^(bits-1) - 1), with
    E[max^2] = integral of 2t (1 - P(|x| < t)^group) dt. Valid while several steps fit in a standard deviation.
    """
    top = (1 << bits - 1) - 1
    return sqrt(_mean_square_of_largest(group) / 12) / top


def _mean_square_of_largest(count: int) -> float:
    step, steps = 1 / 512, 512 * 12  # nothing is left beyond twelve deviations
    middles = [(i + 0.5) * step for i in range(steps)]
    tails = [2 * t * (1 - erf(t / sqrt(2)) ** count) * step for t in middles]
    return sum(tails)
