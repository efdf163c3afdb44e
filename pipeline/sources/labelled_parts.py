"""One labelled array of images: what things are called in it, and reading ranges of it lazily.

What is read is brought to the order (sample, y, x[, channel]). Packed integers stay as they are
stored; of floats, those that stand for missing values become NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.errors import ShapeError, SourceError
from pipeline.schema import CHANNEL, IMAGE, LABEL, PIXEL_DIMS, SAMPLE
from pipeline.settings import nearest
from pipeline.sources.arrays import as_pixels
from pipeline.sources.groups import Group, reading
from pipeline.sources.parts import label_blocks, pixel_blocks

_FILL = ("_FillValue", "missing_value")
_ENCODING = {"scale_factor": 1.0, "add_offset": 0.0}
_TEXT_DTYPE = np.dtype("<U64")  # for texts of any length: about what one takes

Names = Mapping[str, str]


@dataclass(frozen=True)
class LabelledPart:
    """One data set that holds samples of a split, and what things are called in it.

    Attributes
    ----------
    place
        The data set, or where it lies.
    title
        How it is named in messages and origins.
    image, label
        The names of the variables; no label: None.
    dims
        The names of sample, y, x and, where there are channels, channel.
    shape, dtype
        Of the images in this order; the type of the stored values.
    """

    place: Group | xr.Dataset
    title: str
    image: str
    label: str | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def dataset(self) -> xr.Dataset:
        return self.place if isinstance(self.place, xr.Dataset) else self.place.dataset()

    @property
    def pixels(self) -> xr.Variable:
        return self.dataset.variables[self.image]

    @property
    def labels(self) -> xr.Variable | None:
        return None if self.label is None else self.dataset.variables[self.label]

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        if self.labels is None:
            return None
        return _TEXT_DTYPE if self.labels.dtype.kind in "OT" else self.labels.dtype

    @property
    def encoding(self) -> dict[str, float]:
        """What stored integers mean, by the CF conventions."""
        attributes = self.pixels.attrs
        if not any(name in attributes for name in _ENCODING):
            return {}
        if self.dtype.kind == "f":
            raise SourceError(
                f"{self.title}: {self.image} holds floats with a scale_factor, expected packed "
                "integers or plain floats; decode it with xarray and store it again"
            )
        return {name: float(attributes.get(name, usual)) for name, usual in _ENCODING.items()}

    def read_pixels(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read images [sample, y, x] or [sample, y, x, channel]; filled floats become NaN."""
        variable = self.pixels
        values = np.ascontiguousarray(self._computed(variable, start, stop))
        if self.dtype != values.dtype and self.dtype.kind == "u" and values.dtype.kind == "i":
            values = values.view(self.dtype.newbyteorder(values.dtype.byteorder))
        for fill in fills_of(variable) if values.dtype.kind == "f" else ():
            values = np.where(values == fill, np.nan, values).astype(values.dtype)
        return as_pixels(values)

    def read_labels(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read labels [sample], or [sample, class], as they are stored."""
        assert self.labels is not None  # noqa: S101 # else there is no `label_dtype`
        return self._computed(self.labels, start, stop)

    def _computed(self, variable: xr.Variable, start: int, stop: int) -> npt.NDArray[Any]:
        with reading(self.title):
            part = variable.isel({self.dims[0]: slice(start, stop)})
            ordered = part.transpose(*(dim for dim in self.dims if dim in part.dims))
            # one task reads one block: threads within it would be too many
            found: npt.NDArray[Any] = ordered.compute(scheduler="synchronous").values
            return found

    def close(self) -> None:
        if isinstance(self.place, Group):
            self.place.close()

    def describe(self) -> dict[str, Any]:
        """Return what it is made of and what changes when its content does, for the provenance.

        That is what the files say of themselves; of data sets in memory the digest of the values,
        of dask arrays their names.
        """
        found = {"image": self.image, "label": self.label, "dims": list(self.dims)}
        if isinstance(self.place, Group):
            return {**self.place.describe(), **found}
        for role, variable in (("image", self.pixels), ("label", self.labels)):
            if variable is None:
                continue
            name = getattr(variable.data if variable.chunks is not None else None, "name", None)
            if name is not None:
                found[f"{role}_dask"] = name
            else:
                found[f"{role}_sha256"] = self._digest(role)
        return found

    def _digest(self, role: str) -> str:
        digest = hashlib.sha256(f"{self.dtype}{self.shape}{role}".encode())
        labels = (block for _, block in label_blocks([self]))
        for block in labels if role == "label" else pixel_blocks(self):
            digest.update(np.ascontiguousarray(block).tobytes())
        return digest.hexdigest()


def fills_of(variable: xr.Variable) -> list[Any]:
    """Return the values that stand for missing ones."""
    found = {**variable.encoding, **variable.attrs}
    return [value for name in _FILL if name in found for value in np.ravel(found[name]).tolist()]


# names -------------------------------------------------------------------------------------------


def make_part(place: Group | xr.Dataset, title: str, variables: Names, dims: Names) -> LabelledPart:
    """Find out what things are called in a data set.

    Parameters
    ----------
    place, title
        As of `LabelledPart`.
    variables
        What `image` and `label` are called, where not so.
    dims
        What `sample`, `y`, `x` and `channel` are called, where not so.

    Raises
    ------
    SourceError
        Where a name is not there, or cannot be guessed; says what there is.
    ShapeError
        Where there is not one label for each image.
    """
    dataset = place if isinstance(place, xr.Dataset) else place.dataset()
    image = find_image(dataset, variables)
    if image is None:
        wanted = variables.get("image", IMAGE.name)
        raise SourceError(
            f"{title}: has no variable '{wanted}', expected one with 3 or 4 dimensions; it holds "
            f"{_listed(dataset)}; name it: variables: {{image: NAME}}"
        )
    pixels = dataset.variables[image]
    names = _find_dims(title, pixels, dims)
    label = _find_label(title, dataset, names[0], variables)
    shape = tuple(pixels.sizes[dim] for dim in names)
    return LabelledPart(place, title, image, label, names, shape, _stored_dtype(pixels))


def _stored_dtype(pixels: xr.Variable) -> np.dtype[Any]:
    """Return the type of stored values; NetCDF 3 has unsigned integers only by an attribute."""
    unsigned = {**pixels.encoding, **pixels.attrs}.get("_Unsigned") == "true"
    return np.dtype(f"u{pixels.dtype.itemsize}") if unsigned else pixels.dtype


def _listed(dataset: xr.Dataset) -> str:
    found = [
        f"{name} ({', '.join(map(str, variable.dims))}) {variable.dtype}"
        for name, variable in dataset.variables.items()
    ]
    return ", ".join(found) or "no variable"


def find_image(dataset: xr.Dataset, variables: Names) -> str | None:
    """Return the variable of the images, None where it is not there and cannot be guessed."""
    wanted = variables.get("image", IMAGE.name)
    if wanted in dataset.variables:
        return wanted
    fitting = [str(name) for name, v in dataset.variables.items() if v.ndim in (3, 4)]
    return fitting[0] if len(fitting) == 1 and "image" not in variables else None


def _find_dims(title: str, variable: xr.Variable, dims: Names) -> tuple[str, ...]:
    roles = (SAMPLE, *PIXEL_DIMS, CHANNEL)[: variable.ndim]
    names = {role: dims.get(role, role) for role in roles}
    left = [str(dim) for dim in variable.dims if dim not in names.values()]
    missing = [role for role in roles if names[role] not in variable.dims]
    if len(missing) == len(left) == 1 and missing[0] not in dims:
        names[missing[0]] = left[0]
        missing = []
    if variable.ndim not in (3, 4) or missing:
        raise SourceError(
            f"{title}: the images have the dimensions ({', '.join(map(str, variable.dims))}), "
            f"expected {', '.join(names.values())}; name them: dims: {{{roles[0]}: NAME, ...}}"
        )
    return tuple(names.values())


def _find_label(title: str, dataset: xr.Dataset, sample: str, variables: Names) -> str | None:
    wanted = variables.get("label", LABEL.name)
    if wanted in dataset.variables:
        if dataset.variables[wanted].dims != (sample,):
            raise ShapeError(
                f"{title}: {wanted} has the dimensions {dataset.variables[wanted].dims}, expected "
                f"one label for each image, ({sample},)"
            )
        return wanted
    fitting = [
        str(name)
        for name, v in dataset.data_vars.items()
        if v.dims == (sample,) and v.dtype.kind in "iuUSOT"
    ]
    if fitting or "label" in variables:
        raise SourceError(
            f"{title}: has no variable '{wanted}' for labels; {nearest(wanted, fitting)}; name it: "
            "variables: {label: NAME}"
        )
    return None
