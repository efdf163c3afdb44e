"""Images measured from the prototype that their own class has without them, exactly.

Of a mean nothing more has to be counted. Let a class have n images and the sums S, and x be one of
them: the mean of the others is (S - x) / (n - 1), and `|x - (S - x)/(n - 1)| = |n*x - S|/(n - 1)`.
So it is the numerator that is counted anyway, over n - 1 instead of n. Of a median the numerator is
counted anew, from twice the median and how far that moves, see `medians.median_shifts`.

A class that has no other image has no prototype without it: denominator 0, as an empty class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import Arrays
from pipeline.core.deferred import xr
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Int64Array
from pipeline.core.schema import COUNT, DENOMINATOR, FALL, NUMERATOR, RISE, pick

Int32Array = npt.NDArray[np.int32]

# Bytes of differences that are made at once.
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Medians:
    """Twice the medians, and how far they rise or fall without one image: [class, pixel] each."""

    numerators: Int32Array
    rise: Int32Array
    fall: Int32Array

    def numerators_of(
        self, images: npt.NDArray[Any], classes: Int64Array, metric: str
    ) -> Int64Array:
        """Return `sum |2*x - P|` or `sum (2*x - P)**2`, where P/2 is the median of the others.

        Parameters
        ----------
        images
            [sample, pixel]; each one of those that the medians were made of.
        classes
            [sample]; the position of its class.
        metric
            `l1` or `l2`.
        """
        result = np.empty(len(images), np.int64)
        step = max(1, _BLOCK_BYTES // (4 * images.shape[1]))
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            own = classes[part]
            off = 2 * images[part].astype(np.int32) - self.numerators[own]
            off = off - (off <= 0) * self.rise[own] + (off >= 0) * self.fall[own]
            off = off.astype(np.int64)
            result[part] = (np.abs(off) if metric == "l1" else off * off).sum(axis=1)
        return result


@dataclass(frozen=True)
class Others:
    """What tells the prototypes of classes without one of their images from those with it.

    Attributes
    ----------
    denominators
        [class]; that of the prototype of the others, 0 where there are none.
    medians
        What else medians need; None for means.
    """

    denominators: Int64Array
    medians: Medians | None = None


def denominators_without_one(prototypes: xr.Dataset) -> Any:
    """Return the denominators that prototypes have without one image, (class_name), lazy or not.

    Raises
    ------
    SchemaError
        Where it does not follow from them.
    """
    kind = prototypes.attrs.get("prototypes")
    if kind == "mean":
        return (pick(prototypes, DENOMINATOR) - 1).clip(min=0)
    if kind != "median" or RISE.name not in prototypes.variables:
        raise SchemaError(
            f"the prototypes ({kind}) do not tell what they are without one image, expected means, "
            "or medians with 'rise' and 'fall'; class_medians(leave_one_out=True) makes these"
        )
    return (2 * (pick(prototypes, COUNT) > 1)).astype(np.int64)


def median_arrays(prototypes: xr.Dataset) -> list[xr.DataArray]:
    """Return twice the medians, rise and fall, (class_name, y, x[, channel]); of means nothing."""
    if RISE.name not in prototypes.variables:
        return []
    return [pick(prototypes, variable) for variable in (NUMERATOR, RISE, FALL)]


def make_others(denominators: Int64Array, medians: list[Int64Array]) -> Others:
    """Prepare what `denominators_without_one` and `median_arrays` return, as NumPy arrays."""
    if not medians:
        return Others(denominators)
    # at most twice the largest pixel
    flat = [array.reshape(len(array), -1).astype(np.int32) for array in medians]
    return Others(denominators, Medians(*flat))


def others_of(prototypes: xr.Dataset | Arrays) -> Others:
    """Read from prototypes what they are without one image; see `denominators_without_one`."""
    if isinstance(prototypes, Arrays):
        arrays = {name: (array.dims, array.values) for name, array in prototypes.variables.items()}
        prototypes = xr.Dataset(arrays, attrs=prototypes.attrs)
    medians = [array.values for array in median_arrays(prototypes)]
    return make_others(denominators_without_one(prototypes).values, medians)
