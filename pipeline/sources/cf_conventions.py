"""What the stored values of a labelled array mean, by the CF conventions.

Unsigned integers of up to 16 bits stay as they are stored, and their `scale_factor` and
`add_offset` are carried on; other packed integers are decoded to floats, as xarray does. Values of
`_FillValue` and `missing_value`, and those outside `valid_range`, are missing pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.errors import SourceError
from pipeline.sources.array_pixels import NO_GAPS, Gaps, pixel_type

FILLS = ("_FillValue", "missing_value")
_ENCODING = {"scale_factor": 1.0, "add_offset": 0.0}
_VALID = ("valid_range", "valid_min", "valid_max")
PACKED = frozenset(_ENCODING)


@dataclass(frozen=True)
class Meaning:
    """What stored values mean, and as what they are given.

    Attributes
    ----------
    dtype
        Of the values that are given.
    gaps
        What stands for missing pixels in them.
    encoding
        `scale_factor` and `add_offset` of integers that are given as stored.
    decoding
        The attributes by which others are decoded to floats.
    fills
        Values that become NaN in what is stored as floats.
    """

    dtype: np.dtype[Any]
    gaps: Gaps = NO_GAPS
    encoding: Mapping[str, float] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    fills: tuple[Any, ...] = ()

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return stored values as they are given."""
        if self.decoding:
            outside = Gaps((), self.gaps.lowest, self.gaps.highest).find(values)
            found = decoded(values, self.decoding)
            return found if outside is None else np.where(outside, np.nan, found)
        if self.dtype != values.dtype and self.dtype.kind == "u" and values.dtype.kind == "i":
            return values.view(self.dtype.newbyteorder(values.dtype.byteorder))
        for fill in self.fills:
            values = np.where(values == fill, np.nan, values).astype(values.dtype)
        return values


def decoded(values: npt.NDArray[Any], attributes: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return packed values as xarray decodes them: floats, NaN where a value is missing."""
    packed = xr.Dataset({"values": ([f"d{n}" for n in range(values.ndim)], values, attributes)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # several fill values are no fault
        found: npt.NDArray[Any] = xr.decode_cf(packed, decode_times=False)["values"].values
    return found


def meaning_of(title: str, name: str, variable: xr.Variable, is_zarr_2: bool) -> Meaning:
    """Find out what the stored values of a variable of images mean.

    `variable` is not decoded; or decoded, then its attributes say no more. Where it `is_zarr_2`, a
    fill value of 0 says nothing, since the format gives it to all arrays. `title` and `name` are
    for messages.
    """
    attributes = dict(variable.attrs)
    stored = variable.dtype
    if is_zarr_2 and stored.kind in "iu" and attributes.get("_FillValue") == 0:
        del attributes["_FillValue"]
    packed = {key for key in _ENCODING if key in attributes}
    if packed and stored.kind == "f":
        raise SourceError(
            f"{title}: {name} holds floats with a {sorted(packed)[-1]}, expected packed integers "
            "or plain floats; decode it with xarray and store it again"
        )
    if stored.kind == "i" and attributes.get("_Unsigned") == "true":
        stored = np.dtype(f"u{stored.itemsize}")
    fills = tuple(value for key in FILLS for value in _values(attributes, key, stored))
    gaps = _gaps(name, attributes, stored, fills)
    if stored.kind == "f":
        return Meaning(stored, gaps, fills=fills)
    if pixel_type(stored) is None and stored.kind in "iu" and (packed or fills):
        kept = {k: v for k, v in attributes.items() if k in (*FILLS, *_ENCODING, "_Unsigned")}
        return Meaning(decoded(np.zeros(1, variable.dtype), kept).dtype, gaps, decoding=kept)
    encoding = {k: float(attributes.get(k, usual)) for k, usual in _ENCODING.items()}
    return Meaning(stored, gaps, encoding if packed else {})


def _values(attributes: Mapping[str, Any], key: str, stored: np.dtype[Any]) -> list[Any]:
    """Return the values of an attribute as the stored values have them."""
    found = np.ravel(attributes.get(key, ()))
    if stored.kind == "u" and found.dtype.kind == "i" and found.size and found.min() < 0:
        found = found.astype(f"i{stored.itemsize}").view(stored)  # as `_Unsigned` has it
    values: list[Any] = found.tolist()
    return values


def _gaps(
    name: str, attributes: Mapping[str, Any], stored: np.dtype[Any], fills: tuple[Any, ...]
) -> Gaps:
    low, high = [*_values(attributes, "valid_range", stored), None, None][:2]
    low = next(iter(_values(attributes, "valid_min", stored)), low)
    high = next(iter(_values(attributes, "valid_max", stored)), high)
    keys = [key for key in (*FILLS, *_VALID) if key in attributes and not _is_nan(attributes[key])]
    if not keys:
        return NO_GAPS
    listed = ", ".join(f"{key} {np.ravel(attributes[key]).tolist()}" for key in keys)
    deleted = ", ".join(f"ds['{name}'].attrs['{key}']" for key in keys)
    return Gaps(
        tuple(fill for fill in fills if fill == fill),
        low,
        high,
        f"so say the attributes of {name}, {listed}; if such pixels are none that are missing, "
        f"open the set with xarray and mask_and_scale=False, del {deleted}, and write it again",
    )


def _is_nan(value: Any) -> bool:
    return all(item != item for item in np.ravel(value).tolist())
