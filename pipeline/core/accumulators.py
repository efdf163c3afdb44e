"""What the accumulators of a GPU's kernels hold: bounds in plain integers, proved before a launch.

The kernels of `kernels.triton_*` add bytes in registers of 32 bits and flush these to 64 bits, or
end, before they could be full. Floating point holds no sum. With F the largest pixel:

| accumulator | a term is at most | terms until it is flushed |
| --- | --- | --- |
| sums of a class, 32 bits | 255, or 65535 | `SEGMENT` images |
| sums of squares of a class, 32 bits (of 16-bit pixels 64) | 255**2 | `SEGMENT` images |
| `sum |x - m|`, `sum x*m`, `sum x*b`, `sum b` where x > m, 32 bits | 255**2 | `CHUNK` pixels |
| products of two images, each pixel less 128, 32 bits | 128**2 | `DEPTH` pixels |
| `sum |x - y|` and `sum (x - y)**2`, 32 bits where F*D or F**2*D fits, else 64 | F or F**2 | D |
| the same of a few candidates, 32 bits | 255**2, or 65535 | `CHUNK` pixels |

The k nearest are selected by one number of 64 bits, the distance before the position; `key_bits`
tells whether both fit.
"""

from __future__ import annotations

from pipeline.core.exact import largest_pixel

INT32_LIMIT, KEY_LIMIT = 2**31, 2**62

SEGMENT = 2**15
"""Images of one class that are added up in 32 bits: 2**15 * 255**2 < 2**31."""

CHUNK = 2**15
"""Pixels of an image whose products of bytes are added up in 32 bits, likewise."""

DEPTH = 2**16
"""Pixels whose products less 128 are added up in 32 bits: 2**16 * 128**2 = 2**30."""


def fits_int32(bound: int) -> bool:
    """Tell whether sums that never exceed `bound` fit 32 bits with a sign."""
    return bound < INT32_LIMIT


def largest_distance(metric: str, pixels: int, dtype: str) -> int:
    """Return the largest `sum |x - y|` (l1) or `sum (x - y)**2` of two images of so many pixels."""
    largest = largest_pixel(dtype)
    return pixels * (largest if metric == "l1" else largest**2)


def byte_planes(denominator: int) -> int:
    """Return how many bytes hold every remainder below `denominator`, at least one."""
    return max(1, -(-(max(denominator, 1) - 1).bit_length() // 8))


def key_bits(largest: int, count: int) -> int | None:
    """Return the bits of a position below `count` in a key; None where a key would not fit.

    A key is the distance, at most `largest`, times 2**bits plus the position. One distance more
    must fit, which stands for none.
    """
    bits = max(1, (max(count, 1) - 1).bit_length())
    return bits if (largest + 2) << bits < KEY_LIMIT else None
