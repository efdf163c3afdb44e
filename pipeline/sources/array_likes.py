"""What callers hand over as images and labels, as NumPy arrays: lists, tensors, labelled arrays.

What is plainly meant is converted, and nothing else: neither values nor types are changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError, LabelError, ShapeError, SourceError
from pipeline.core.messages import describe
from pipeline.core.schema import UNLABELLED

Array = npt.NDArray[Any]
_EXPECTED = "expected a mapping such as {'train': (images, labels)}, arrays of equal length"
_ROLES = (("image", "images"), ("label", "labels"))
_DIMS = ("sample", "y", "x", "channel")


def as_splits(given: object) -> dict[str, tuple[Array, Array]]:
    """Return images and labels by split as arrays; labels that are None are -1, for none.

    Raises
    ------
    SourceError, ShapeError
        Where they are no arrays, and nothing that plainly stands for one.
    """
    if not isinstance(given, Mapping) or hasattr(given, "data_vars"):
        raise SourceError(f"arrays are {_kind(given)}; {_EXPECTED}")
    found = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise SourceError(f"split {describe(name)}: expected a name as text; {_EXPECTED}")
        images, labels = _pair(name, value)
        pixels = as_array(images, f"split '{name}': images")
        codes = None if labels is None else _as_labels(labels, f"split '{name}': labels")
        found[name] = pixels, np.full(pixels.shape[:1], UNLABELLED) if codes is None else codes
    return found


def _as_labels(value: Any, where: str) -> Array:
    """Return labels as an array; those that are masked stay so, and stand for none."""
    is_masked = isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())
    return value if is_masked and value.ndim else as_array(value, where)


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    """Return the images and the labels of a split."""
    if isinstance(value, tuple | list) and len(value) == len(_ROLES):
        return value[0], value[1]
    if isinstance(value, Mapping):  # or a data set of xarray
        keys = [next((key for key in role if key in value), None) for role in _ROLES]
        coordinates = getattr(value, "coords", {})
        keys = [
            key or next((name for name in role if name in coordinates), None)
            for key, role in zip(keys, _ROLES, strict=True)
        ]
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
    if isinstance(value, list | tuple) and _holds_arrays(value):
        value = _stacked(value, where)
    try:
        array = np.asarray(_on_host(value))
    except Exception as error:  # of whatever library it is
        reason = " ".join(str(error).split())
        raise SourceError(f"{where} are {_kind(value)}, not an array ({reason})") from None
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


def _holds_arrays(values: Sequence[Any]) -> bool:
    plain = (str, bytes, list, tuple, np.generic)
    return bool(values) and hasattr(values[0], "__array__") and not isinstance(values[0], plain)


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
    """Return names of classes as texts; whole numbers are taken as such.

    Raises
    ------
    LabelError
        Where they are no sequence of texts.
    """
    if given is None:
        return None
    values = given.tolist() if hasattr(given, "tolist") else given
    good = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not isinstance(values, Sequence) or not good:
        raise LabelError(f"class_names: {describe(given)}, expected a list of names")
    for value in values:
        if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
            raise LabelError(f"class_names: {describe(value)}, expected a name as text")
    return tuple(str(value) for value in values)


def as_scale(given: object) -> int | None:
    """Return a full scale as a whole number above 0, or raise `ConfigError`."""
    if given is None:
        return None
    whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if isinstance(given, int | np.integer) and whole and given > 0:
        return int(given)
    raise ConfigError(f"full_scale: {describe(given)}, expected a whole number above 0")


def _kind(value: object) -> str:
    """Return what a value is, in few words: an array's shape and type, else its type."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)} and {dtype}"
    return describe(value) if np.isscalar(value) or value is None else f"a {type(value).__name__}"
