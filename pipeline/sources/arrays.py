"""Images and labels that callers hand over: NumPy arrays, and what plainly stands for them.

Lists, tensors, lazy and labelled arrays are converted, and nothing else: neither values nor types
are changed. Which layouts images may have, without names of dimensions, is decided here as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import array_digest
from pipeline.core.errors import (
    ConfigError,
    LabelError,
    ShapeError,
    SourceError,
    describe,
    one_line,
)
from pipeline.core.schema import UNLABELLED
from pipeline.sources.array_source import (
    ArrayPart,
    ArraySource,
    as_images,
    check_parts,
    has_lone_channel,
    scale_of,
    survey_parts,
)
from pipeline.sources.labels import Labelling, check_form

Array = npt.NDArray[Any]

_EXPECTED = "expected a mapping such as {'train': (images, labels)}, arrays of equal length"
_ROLES = (("image", "images"), ("label", "labels"))
_DIMS = ("sample", "y", "x", "channel")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class MemoryArray:
    """Images or labels of a split that are in memory; see `array_source.Stored`."""

    title: str
    values: Array

    @property
    def name(self) -> str:
        return self.title

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def read(self, start: int, stop: int) -> Array:
        return self.values[start:stop]

    def close(self) -> None:
        """Close nothing: the array is the caller's."""


def from_arrays(
    arrays: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    full_scale: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ArraySource:
    """Make a source of arrays.

    Parameters
    ----------
    arrays
        Split name -> (images, labels). Images are uint8, uint16, bool (taken as 0 and 1) or
        floats; labels integer codes or texts, or None. Lists, tensors and labelled arrays are
        taken as the arrays that they stand for; so is a data set with `image` and `label`.
    class_names
        The name of each label code; default: the codes themselves, as text, or the texts, sorted.
    full_scale
        The pixel value that counts as 1; default: the largest of the pixel type; 1 for bool and
        floats.
    provenance
        Where they come from; default: digests of the arrays.

    Raises
    ------
    ShapeError
        Where a split has not one label per image.
    SourceError, LabelError
        Where images are of another type, or labels neither codes nor texts, or outside the
        classes.

    Examples
    --------
    >>> import numpy as np, pipeline
    >>> images = np.zeros((4, 8, 8), np.uint8)
    >>> source = pipeline.from_arrays({"train": (images, ["cat", "dog", "dog", "cat"])})
    >>> source.class_names
    ('cat', 'dog')
    >>> pipeline.open_images(pipeline.ingest(source, "pets.zarr"))["label"].values.tolist()
    [0, 1, 1, 0]
    """
    given, class_names, full_scale = as_splits(arrays), as_names(class_names), as_scale(full_scale)
    if not isinstance(provenance, Mapping | None):
        raise ConfigError(f"provenance: {describe(provenance)}, expected a mapping of plain values")
    parts = {name: [_part(name, *pair)] for name, pair in given.items()}
    check_parts(parts)
    labelling = survey_parts(parts, class_names)
    flat = has_lone_channel(part.shape[1:] for (part,) in parts.values())
    coded = {}
    for name, (images, labels) in given.items():
        images = as_images(images, parts[name][0].channels_first)
        images = images.reshape(images.shape[:3]) if flat else images
        coded[name] = images, _coded(labelling, labels, f"split '{name}'")
    if full_scale is None:
        full_scale = max((scale_of(images.dtype) for images, _ in coded.values()), default=1)
    if provenance is None:
        digests = {k: [array_digest(a) for a in pair] for k, pair in coded.items()}
        provenance = {"kind": "arrays", "sha256": digests}
    parts = {name: [_part(name, *pair)] for name, pair in coded.items()}
    return ArraySource(parts, Labelling(labelling.class_names), full_scale, dict(provenance))


def _part(split: str, images: Array, labels: Array) -> ArrayPart:
    """Return the images and labels of a split as a part, or raise where they do not fit."""
    title = f"split '{split}'"
    first = check_shapes(title, images.shape, labels.shape, labels.dtype, True)
    return ArrayPart(MemoryArray(title, images), MemoryArray(title, labels), first, origin=split)


def _coded(labelling: Labelling, labels: Array, where: str) -> Array:
    """Return the code of each label; codes as they are, so that their digest stays theirs."""
    are_codes = labelling.codes is None and labels.dtype.kind in "iu"
    if are_codes and labels.size == len(labels) and not np.ma.isMaskedArray(labels):
        return labels.reshape(-1)
    return labelling.apply(labels, where)


# layout ------------------------------------------------------------------------------------------


def check_shapes(
    where: str,
    images: tuple[int, ...],
    labels: tuple[int, ...] | None,
    dtype: np.dtype[Any],
    asked_last: bool = False,
) -> bool:
    """Raise unless images have 3 or 4 dimensions, and labels of a usable type are as many.

    Returns whether the images are stored with their channels first; where that may be either,
    they come last if callers are `asked` to give them so, else it is an error.
    """
    if labels is not None and labels[:1] == images[:1] != ():
        check_form(where, images[0], labels, dtype)
    first = has_channels_first(where, images, asked_last)
    if labels is not None:
        check_form(where, images[0], labels, dtype)
    return first


def has_channels_first(where: str, shape: Sequence[int], asked_last: bool = False) -> bool:
    """Tell whether images without named dimensions are [sample, channel, y, x].

    That is plain where 1, 3 or 4 stands second and not last. Where few stand last, or fewer than
    rows and columns, they are [sample, y, x, channel]. What is ambiguous raises `ShapeError`.
    """
    of_shape, expected = f"{where}: images of shape {tuple(shape)}", "expected (sample, y, x) or"
    if len(shape) == 2:
        raise ShapeError(
            f"{of_shape}, which are flat: {shape[1]} values each; {expected} "
            f"(sample, y, x, channel); {_unflattened(shape[1])}"
        )
    if len(shape) not in (3, 4):
        raise ShapeError(f"{of_shape}, {expected} (sample, y, x, channel)")
    if len(shape) == 3:
        return False
    second, middle, last = shape[1:]
    if last in (*_CHANNELS, 2):
        either = second in _CHANNELS and last in _CHANNELS and middle == last != second
        if either and not asked_last:
            raise _either(of_shape)
        return False
    if second in _CHANNELS:
        return True
    if last < min(second, middle):
        return False
    if second == middle == last:
        raise ShapeError(
            f"{of_shape}, which are 3-D: as many layers as rows and columns; {expected} "
            f"(sample, y, x, channel); choose one layer, such as images[:, {second // 2}]"
        )
    raise _either(of_shape)


def _either(of_shape: str) -> ShapeError:
    return ShapeError(
        f"{of_shape} are 3-D, or may have their channels first or last; expected (sample, y, x, "
        "channel) with fewer channels than rows and columns; turn them: np.moveaxis(images, 1, "
        "-1), or choose one layer: images[:, 0]"
    )


def _unflattened(size: int) -> str:
    for channels, shape in ((1, "(-1, {0}, {0})"), (3, "(-1, 3, {0}, {0})")):
        side = math.isqrt(size // channels)
        if channels * side * side == size:
            return _reshaped(shape.format(side))
    return _reshaped("(-1, HEIGHT, WIDTH)")


def _reshaped(shape: str) -> str:
    sides = shape.replace("(-1, ", "[").replace(")", "]")
    return f"give them their shape: images.reshape{shape}, or, of those in files, shape: {sides}"


# what stands for arrays --------------------------------------------------------------------------


def as_splits(given: object) -> dict[str, tuple[Array, Array]]:
    """Return images and labels by split as arrays; labels that are None are -1, for none."""
    if not isinstance(given, Mapping) or hasattr(given, "data_vars"):
        raise SourceError(f"arrays are {_kind(given)}; {_EXPECTED}")
    splits = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise SourceError(f"split {describe(name)}: expected a name as text; {_EXPECTED}")
        images, labels = _pair(name, value)
        pixels = as_array(images, f"split '{name}': images")
        if labels is None:
            labels = np.full(pixels.shape[:1], UNLABELLED)
        # labels that are masked stay so, and stand for none
        elif not (np.ma.isMaskedArray(labels) and labels.ndim and np.ma.is_masked(labels)):
            labels = as_array(labels, f"split '{name}': labels")
        splits[name] = pixels, labels
    return splits


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    """Return the images and the labels of a split."""
    if isinstance(value, tuple | list) and len(value) == len(_ROLES):
        return value[0], value[1]
    if isinstance(value, Mapping):  # or a data set of xarray
        keys = [next((key for key in role if key in value), None) for role in _ROLES]
        if None not in keys:
            return value[keys[0]], value[keys[1]]
    raise SourceError(
        f"split '{name}' is {_kind(value)}, expected (images, labels), or a mapping or xarray data "
        "set with 'image' and 'label'; labels are None where there are none"
    )


def as_array(value: Any, where: str) -> Array:
    """Return what stands for an array as one: a list, a tensor, a labelled or lazy array."""
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            raise SourceError(f"{where} have masked values; fill them, or leave these samples out")
        value = value.data
    if isinstance(value, str | bytes | Mapping) or np.isscalar(value) or value is None:
        raise SourceError(f"{where} are {_kind(value)}, expected an array")
    head = value[0] if isinstance(value, list | tuple) and value else None
    if hasattr(head, "__array__") and not isinstance(head, np.generic):
        value = _stacked(value, where)
    try:
        array = np.asarray(_on_host(value))
    except Exception as error:  # of whatever library it is
        raise SourceError(f"{where} are {_kind(value)}, not an array ({one_line(error)})") from None
    if not array.ndim and not isinstance(value, np.ndarray):  # of which the shape is looked at
        raise SourceError(f"{where} are {_kind(value)}, expected an array")
    return _plain(array) if array.dtype.kind in "OT" else array


def _on_host(value: Any) -> Any:
    """Return a value that NumPy takes: tensors from their device, labelled arrays in order."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    dims = getattr(value, "dims", ())
    if isinstance(dims, tuple) and {*_DIMS[:3]} <= {*dims} <= {*_DIMS}:
        value = value.transpose(*(dim for dim in _DIMS if dim in dims))
    return value.to_numpy() if hasattr(value, "to_numpy") else value


def _stacked(values: Sequence[Any], where: str) -> Array:
    """Return a list of arrays, such as images of Pillow, as one."""
    arrays = [as_array(value, where) for value in values]
    for number, array in enumerate(arrays):
        if (array.shape, array.dtype) != (arrays[0].shape, arrays[0].dtype):
            raise ShapeError(
                f"{where}: number {number} is {array.shape} {array.dtype}, expected "
                f"{arrays[0].shape} {arrays[0].dtype} as number 0; bring them to one shape and type"
            )
    return np.stack(arrays)


def _plain(array: Array) -> Array:
    """Return an array of objects that are all texts, or all whole numbers, as one of these."""
    kinds = {type(value) for value in array.reshape(-1).tolist()}
    if kinds == {str}:
        return array.astype(str)
    if kinds and all(issubclass(kind, int | np.integer) for kind in kinds - {bool}):
        return array if bool in kinds else array.astype(np.int64)
    return array


def as_names(given: object) -> tuple[str, ...] | None:
    """Return names of classes as texts; whole numbers are taken as such."""
    if given is None:
        return None
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise LabelError(f"class_names: {describe(given)}, expected a list of names")
    for value in values:
        if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
            raise LabelError(f"class_names: {describe(value)}, expected a name as text")
    return tuple(str(value) for value in values)


def as_scale(given: object) -> int | None:
    """Return a full scale as a whole number above 0, or raise `ConfigError`."""
    if given is None:
        return None
    if isinstance(given, int | np.integer) and not isinstance(given, bool) and given > 0:
        return int(given)
    raise ConfigError(f"full_scale: {describe(given)}, expected a whole number above 0")


def _kind(value: object) -> str:
    """Return what a value is, in few words: an array's shape and type, else its type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)} and {dtype}"
    return describe(value) if np.isscalar(value) or value is None else f"a {type(value).__name__}"
