"""What the kernels of a device can do: the signatures that each backend has, and their contracts.

NumPy arrays in, exact integers out. `backends` loads those of a device; its docstring says how many
times they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Arithmetic, Float64Array, Int64Array

Pixels = npt.NDArray[Any]
"""[sample, pixel]; uint8 or uint16, C-contiguous."""

Prepared = Any
"""Prototypes as the loops of one device read them; what `Prepare` returns."""


class ClassSums(Protocol):
    """Sum the images of each class, and their squares.

    `positions` is [sample] int64, the class position of each image, negative to leave it out.
    Returns `sum x` and `sum x*x`, both [class, pixel] int64, and the image counts, [class] int64;
    with `into`, three such arrays, they are added to them and these are returned. To `counts`, an
    array that `Histograms` could return, the counts of the same images are added, so that pixels go
    to a device once for both.
    """

    def __call__(
        self,
        images: Pixels,
        positions: Int64Array,
        classes: int,
        into: tuple[Int64Array, Int64Array, Int64Array] | None = None,
        counts: npt.NDArray[np.uint32] | None = None,
    ) -> tuple[Int64Array, Int64Array, Int64Array]: ...


class Histograms(Protocol):
    """Count the values of each pixel in each class, [class, pixel, 256] uint32.

    Of 16-bit pixels the high bytes are counted; with `high`, [class, pixel] uint8, the low bytes
    of those values whose high byte is that. Counts of parts of an image set add up: with `into`,
    they are added to that array, and it is returned.
    """

    def __call__(
        self,
        images: Pixels,
        positions: Int64Array,
        classes: int,
        high: npt.NDArray[np.uint8] | None = None,
        into: npt.NDArray[np.uint32] | None = None,
    ) -> npt.NDArray[np.uint32]: ...


class SelectRanks(Protocol):
    """Find the value that has each rank, from 0, and its rank among equal values.

    `counts` is [class, pixel, 256] uint32, `ranks` [class, pixel] int64. Returns [class, pixel]
    uint8 and int64; 0 where there are not so many values.
    """

    def __call__(
        self, counts: npt.NDArray[np.uint32], ranks: Int64Array
    ) -> tuple[npt.NDArray[np.uint8], Int64Array]: ...


class Prepare(Protocol):
    """Bring prototypes P/n, [class, pixel] over [class], into the form that the loops read.

    A class with n = 0 must have P = 0, and is measured as black over 1.
    """

    def __call__(
        self, numerators: Int64Array, denominators: Int64Array, arithmetic: Arithmetic
    ) -> Prepared: ...


class L1Numerators(Protocol):
    """Return `sum |n*x - P|` of every image x and prototype P/n, [sample, class] int64."""

    def __call__(self, images: Pixels, prototypes: Prepared) -> Int64Array: ...


class DotProducts(Protocol):
    """Return `sum x*m` and `sum x*r` of every image x and prototype (n*m + r)/n.

    Two of [sample, class] int64: the two limbs of `sum x*P`.
    """

    def __call__(self, images: Pixels, prototypes: Prepared) -> tuple[Int64Array, Int64Array]: ...


class SquaredNorms(Protocol):
    """Return `sum x*x` of every image, [sample] int64."""

    def __call__(self, images: Pixels) -> Int64Array: ...


class Measure(Protocol):
    """Count all that distances to prototypes need, in one read of each image.

    Returns what `L1Numerators` does, the two arrays of `DotProducts`, and what `SquaredNorms` does;
    undefined where `l1`, or `l2` for the other three, is not asked for. The first three may be
    int32 where no sum exceeds that: they come from a device faster than they are widened.
    """

    def __call__(
        self, images: Pixels, prototypes: Prepared, *, l1: bool = True, l2: bool = True
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], Int64Array]: ...


class Empty(Protocol):
    """Return an array, not filled, in memory from which the device copies without a detour."""

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]: ...


class Distances(Protocol):
    """Measure images by several metrics and divide, in one read of them; or return False.

    The same bits as `exact.finish_l1` and `exact.finish_l2` make of what the kernels above count.

    Parameters
    ----------
    images, prototypes
        As for the kernels above; `(n*F)**2 * D < 2**63` for l2.
    scales
        For `l1`, `l2` or both: [class] float64, what the numerators of a class are divided by.
    into
        For the same ones: [sample, class] float64, where distances are written, NaN for a scale
        that is NaN.
    """

    def __call__(
        self,
        images: Pixels,
        prototypes: Prepared,
        scales: Mapping[str, Float64Array],
        into: Mapping[str, Float64Array],
    ) -> bool: ...


class NearestPrototype(Protocol):
    """Find the nearest prototype of each image, by one metric, and nothing else; or return False.

    Parameters
    ----------
    images, prototypes, metric
        As for `Distances`.
    scale
        [class] float64; as for `Distances`.
    positions, distances
        [sample] int64 and float64; the position of the nearest, of equally near ones the first, and
        how far it is; -1 and NaN where there is none.
    """

    def __call__(
        self,
        images: Pixels,
        prototypes: Prepared,
        metric: str,
        scale: Float64Array,
        positions: Int64Array,
        distances: Float64Array,
    ) -> bool: ...


class PrepareSearch(Protocol):
    """Bring references into the form that a search reads.

    Parameters
    ----------
    images
        [reference, pixel]; at least one.
    shape
        Of an image, (y, x) or (y, x, channel).
    metric
        `l1` or `l2`.
    indices
        [reference] int64, ascending; the index of each. Default: from 0.
    pairs
        Whether for `Within`, else for `Nearest`.
    threads
        How many cores to use.
    """

    def __call__(
        self,
        images: Pixels,
        shape: tuple[int, ...],
        metric: str,
        indices: Int64Array | None = None,
        *,
        pairs: bool = False,
        threads: int = 1,
    ) -> Prepared: ...


class Nearest(Protocol):
    """Put the references that are nearer than those in the lists of each query into these.

    A list holds k distances, `sum |x - y|` by l1 and `sum (x - y)**2` by l2, and the indices of the
    references, sorted by both. So the lists of parts of the references are those of all when
    they are passed on from part to part. They begin with `exact.NOWHERE` in both.

    Parameters
    ----------
    queries
        [query, pixel], of the type of the references.
    references
        What `PrepareSearch` returns.
    skip
        [query] int64; the index of a reference that is left out, such as the query itself; or -1.
    distances, neighbours
        [query, k] int64; the lists.
    threads
        How many cores to use.
    """

    def __call__(
        self,
        queries: Pixels,
        references: Prepared,
        skip: Int64Array,
        distances: Int64Array,
        neighbours: Int64Array,
        threads: int = 1,
    ) -> object: ...


class Within(Protocol):
    """Return all pairs of a query and a reference with a distance of at most `most`.

    [pair, 3] int64: the number of the query, the index of the reference, and their distance as
    `Nearest` measures it; sorted by the first two.
    """

    def __call__(
        self, queries: Pixels, references: Prepared, most: int, threads: int = 1
    ) -> Int64Array: ...


@dataclass(frozen=True)
class Kernels:
    """The kernels of one device.

    Attributes
    ----------
    device
        As it is named here: `cpu`, `triton:cuda`, `torch:cpu`, ...
    description
        One line: what runs them, and on what.
    whole_blocks
        Whether a block of images is best measured at one go: it is cut, and spread, there.
    memory
        Bytes that are free on the device; None where its memory is that of the machine.
    """

    device: str
    description: str
    whole_blocks: bool
    memory: int | None
    class_sums: ClassSums
    histograms: Histograms
    select_ranks: SelectRanks
    prepare: Prepare
    l1_numerators: L1Numerators
    dot_products: DotProducts
    squared_norms: SquaredNorms
    measure: Measure
    prepare_search: PrepareSearch
    nearest: Nearest
    within: Within
    empty: Empty
    distances: Distances
    nearest_prototype: NearestPrototype
