"""One labelled array of images: what things are called in it, and reading ranges of it lazily.

What is read is brought to the order (sample, y, x[, channel]). What stored values mean is said in
`sources.meaning`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.errors import ShapeError, SourceError
from pipeline.core.messages import nearest
from pipeline.core.schema import CHANNEL, IMAGE, LABEL, PIXEL_DIMS, SAMPLE
from pipeline.sources.array_names import IMAGE_WORDS, LABEL_WORDS
from pipeline.sources.array_parts import label_blocks, pixel_blocks
from pipeline.sources.arrays import Gaps, as_pixels
from pipeline.sources.cf_conventions import PACKED, Meaning, decoded, meaning_of
from pipeline.sources.labels import check_form
from pipeline.sources.xarray_groups import Group, reading

TEXT_DTYPE = np.dtype("<U64")  # for texts of any length: about what one takes
# what dimensions are usually called, beside their own names
_USUAL_DIMS = {
    SAMPLE: (
        "samples", "time", "n", "batch", "index", "id", "image", "images", "obs", "record",
        "frame", "example",
    ),
    PIXEL_DIMS[0]: ("lat", "latitude", "height", "row", "rows", "h", "northing"),
    PIXEL_DIMS[1]: ("lon", "longitude", "width", "col", "cols", "column", "w", "easting"),
    CHANNEL: ("channels", "band", "bands", "c"),
}  # fmt: skip

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
    shape
        Of the images in this order.
    meaning
        What stored values mean.
    """

    place: Group | xr.Dataset
    title: str
    image: str
    label: str | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    meaning: Meaning

    @property
    def dataset(self) -> xr.Dataset:
        return self.place if isinstance(self.place, xr.Dataset) else self.place.dataset()

    @property
    def pixels(self) -> xr.Variable:
        return self.dataset.variables[self.image]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the images as they are given: of the stored values, or of floats decoded."""
        return self.meaning.dtype

    @property
    def gaps(self) -> Gaps:
        return self.meaning.gaps

    @property
    def encoding(self) -> Mapping[str, float]:
        """What stored integers mean, by the CF conventions."""
        return self.meaning.encoding

    @property
    def label_title(self) -> str:
        return f"{self.title}: {self.label}"

    @property
    def labels(self) -> xr.Variable | None:
        return None if self.label is None else self.dataset.variables[self.label]

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        if self.labels is None:
            return None
        return TEXT_DTYPE if self.labels.dtype.kind in "OT" else self.labels.dtype

    def read_pixels(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read images [sample, y, x] or [sample, y, x, channel]; filled floats become NaN."""
        values = np.ascontiguousarray(self._computed(self.pixels, start, stop))
        if isinstance(self.place, Group):  # labels are read before the images that they belong to
            with reading(self.title):
                self.place.require_unchanged()
        return as_pixels(self.meaning.apply(values))

    def read_labels(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read labels [sample], or [sample, class]: as stored, but for packed ones."""
        assert self.labels is not None  # noqa: S101 # else there is no `label_dtype`
        values = self._computed(self.labels, start, stop)
        if PACKED & set(self.labels.attrs):
            return decoded(values, self.labels.attrs)
        return values

    def _computed(self, variable: xr.Variable, start: int, stop: int) -> npt.NDArray[Any]:
        with reading(self.title):
            part = variable.isel({self.dims[0]: slice(start, stop)})
            ordered = part.transpose(*(dim for dim in self.dims if dim in part.dims), ...)
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
    meaning = meaning_of(title, image, pixels, _is_zarr_2(pixels))
    return LabelledPart(place, title, image, label, names, shape, meaning)


def _is_zarr_2(variable: xr.Variable) -> bool:
    """Tell whether a variable is of Zarr's second format, where all arrays have a fill value."""
    return "filters" in variable.encoding and "serializer" not in variable.encoding


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
    if "image" in variables:
        return None
    fitting = [str(name) for name, v in dataset.variables.items() if v.ndim in (3, 4)]
    usual = [name for name in fitting if name.lower() in IMAGE_WORDS]
    chosen = usual if len(usual) == 1 else fitting
    return chosen[0] if len(chosen) == 1 else None


def _find_dims(title: str, variable: xr.Variable, dims: Names) -> tuple[str, ...]:
    """Return what the dimensions are called: as given, as usual, or the one that is left over."""
    roles = (SAMPLE, *PIXEL_DIMS, CHANNEL)[: variable.ndim]
    names = {role: dims.get(role, role) for role in roles}
    for role in roles:
        if names[role] in variable.dims or role in dims:
            continue
        left = [str(dim) for dim in variable.dims if dim not in names.values()]
        usual = [dim for dim in left if dim.lower() in _USUAL_DIMS[role]]
        names[role] = usual[0] if len(usual) == 1 else role
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
    along = [
        str(n) for n, v in dataset.variables.items() if v.dims[:1] == (sample,) and n != sample
    ]
    usual = [name for name in along if name.lower() in LABEL_WORDS]
    if wanted not in dataset.variables and "label" not in variables and len(usual) == 1:
        wanted = usual[0]
    if wanted in dataset.variables:
        found = dataset.variables[wanted]
        if found.dims[:1] != (sample,):
            raise ShapeError(
                f"{title}: {wanted} has the dimensions {found.dims}, expected one label for each "
                f"image, ({sample},)"
            )
        dtype = TEXT_DTYPE if found.dtype.kind in "OT" else found.dtype
        check_form(f"{title}: {wanted}", dataset.sizes[sample], found.shape, dtype)
        return wanted
    fitting = [
        name
        for name in along
        if name in dataset.data_vars
        and dataset.variables[name].ndim == 1
        and (dataset.variables[name].dtype.kind in "biuUSOT" or name in usual)
    ]
    if fitting or "label" in variables:
        raise SourceError(
            f"{title}: has no variable '{wanted}' for labels; {nearest(wanted, fitting)}; name it: "
            "variables: {label: NAME}"
        )
    return None


def left_out(part: LabelledPart) -> list[str]:
    """Return the variables beside the images that are not read, as text."""
    used = {part.image, part.label, *part.dims}
    return [
        f"{name} ({', '.join(map(str, v.dims))}) {v.dtype}"
        for name, v in part.dataset.variables.items()
        if str(name) not in used and part.dims[0] in v.dims
    ]
