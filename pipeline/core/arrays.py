"""Labelled arrays without xarray: what a job writes, and reads back, of its prototypes.

Importing xarray, with pandas, takes longer than a small job, which needs names and dimensions of a
few arrays and none of what xarray does with them. The functions of `ops` that put labels on arrays
make a data set of the kind that they are given, this one or xarray's: both are made in one way, and
have what is used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Array:
    """An array, its dimensions by name, and what it is.

    Attributes
    ----------
    dims
        The name of each dimension.
    data
        NumPy's, or an array of a store, which is read when its values are asked for.
    attrs
        What it is, as in a file.
    """

    dims: tuple[str, ...]
    data: Any
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> npt.NDArray[Any]:
        return np.asarray(self.data[(slice(None),) * len(self.dims)])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def variable(self) -> Array:
        return self

    def copy(self, data: Any) -> Array:
        """Return other numbers under the same labels."""
        return replace(self, data=data)

    def isel(self, indexers: Mapping[str, Sequence[int]]) -> Array:
        """Take some of the first dimension, where that is named."""
        if not self.dims or self.dims[0] not in indexers:
            return self
        # one by one, so that of an array of a store no more is read
        parts = [self.data[at : at + 1] for at in indexers[self.dims[0]]]
        return replace(self, data=np.concatenate(parts or [self.data[:0]]))


class Arrays(Mapping[str, Array]):
    """Arrays by name, with coordinates and attributes, made as `xarray.Dataset` is.

    Parameters
    ----------
    data_vars, coords
        Name to `Array`, to a tuple of dimensions, data and perhaps attributes, or, of a coordinate,
        to the values along the dimension of its name.
    attrs
        What the data set is.

    Examples
    --------
    >>> few = Arrays({"count": ("class_name", np.array([3, 5]))}, {"class_name": ["a", "b"]})
    >>> few["count"].dims, few["count"].isel({"class_name": [1]}).values.tolist()
    (('class_name',), [5])
    """

    def __init__(
        self,
        data_vars: Mapping[str, Any],
        coords: Mapping[str, Any] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self.coords = {str(name): _made(name, value) for name, value in (coords or {}).items()}
        self.data_vars = {str(name): _made(name, value) for name, value in data_vars.items()}
        self.attrs: dict[str, Any] = dict(attrs or {})

    @property
    def variables(self) -> dict[str, Array]:
        """All of them, with the coordinates."""
        return self.data_vars | self.coords

    def __getitem__(self, name: str) -> Array:
        return self.variables[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.data_vars[name] = _made(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def isel(self, indexers: Mapping[str, Sequence[int]]) -> Arrays:
        """Take some of the first dimension of all that have it."""
        arrays, coordinates = (
            {name: array.isel(indexers) for name, array in part.items()}
            for part in (self.data_vars, self.coords)
        )
        return Arrays(arrays, coordinates, self.attrs)


def _made(name: str, value: Any) -> Array:
    if isinstance(value, Array):
        return value
    if not isinstance(value, tuple):
        return Array((name,), np.asarray(value))
    dims, data, *attributes = value
    names = (dims,) if isinstance(dims, str) else tuple(str(dim) for dim in dims)
    return Array(names, data, dict(attributes[0]) if attributes else {})
