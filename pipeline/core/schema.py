"""Each variable of pixsim declared once: its name, dimensions, dtypes, units and meaning.

Functions that take labelled arrays call `conform` at the door: dimensions may come in any order,
and a wrong array fails with a sentence about dimensions and dtypes instead of an error from deep
inside a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import SchemaError

SAMPLE = "sample"
CLASS = "class_name"
METRIC = "metric"
RANK = "rank"
PAIR = "pair"
AMONG_THEMSELVES = "among_themselves"
"""Attribute of neighbours: 1 where those are of images among themselves, 0 among other images."""
PIXEL_DIMS = ("y", "x")
CHANNEL = "channel"

METRICS = ("l1", "l2")
PIXEL_TYPES = ("uint8", "uint16")
UNLABELLED = -1


@dataclass(frozen=True)
class Variable:
    """One variable: `dims` are required, `optional` may follow them; results have this order."""

    name: str
    dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    units: str | None
    long_name: str
    optional: tuple[str, ...] = ()

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that the variable carries in stores and in memory."""
        units = {} if self.units is None else {"units": self.units}
        return {"long_name": self.long_name} | units


IMAGE = Variable(
    "image", (SAMPLE, *PIXEL_DIMS), PIXEL_TYPES, None, "pixel value", optional=(CHANNEL,)
)
LABEL = Variable("label", (SAMPLE,), ("int32",), None, "code into class_names, -1 where unlabelled")
PIXEL_SUM = Variable(
    "pixel_sum", (CLASS, *PIXEL_DIMS), ("int64",), None, "sum of pixel values", (CHANNEL,)
)
PIXEL_SQUARE_SUM = Variable(
    "pixel_square_sum",
    (CLASS, *PIXEL_DIMS),
    ("int64",),
    None,
    "sum of squared pixel values",
    (CHANNEL,),
)
COUNT = Variable("count", (CLASS,), ("int64",), "1", "number of images of the class")
CLASS_CODE = Variable("class_code", (CLASS,), ("int32",), None, "code of the class")
NUMERATOR = Variable(
    "numerator", (CLASS, *PIXEL_DIMS), ("int64",), None, "prototype times denominator", (CHANNEL,)
)
DENOMINATOR = Variable("denominator", (CLASS,), ("int64",), "1", "denominator of the prototype")
RISE = Variable(
    "rise", (CLASS, *PIXEL_DIMS), ("int64",), None,
    "how much higher the numerator is without one of the lower images", (CHANNEL,),
)  # fmt: skip
FALL = Variable(
    "fall", (CLASS, *PIXEL_DIMS), ("int64",), None,
    "how much lower the numerator is without one of the higher images", (CHANNEL,),
)  # fmt: skip
PROTOTYPE = Variable(
    "prototype", (CLASS, *PIXEL_DIMS), ("float64",), None, "prototype image", (CHANNEL,)
)
SPREAD = Variable(
    "std",
    (CLASS, *PIXEL_DIMS),
    ("float64",),
    None,
    "standard deviation of the pixel over the images of the class",
    (CHANNEL,),
)
DISTANCE = Variable(
    "distance",
    (METRIC, SAMPLE, CLASS),
    ("float64",),
    "1",
    "distance to the prototype, 1 is full scale",
)
NEIGHBOUR = Variable(
    "neighbour", (METRIC, SAMPLE, RANK), ("int64",), None,
    "position of the neighbour among the samples searched, -1 where there is none",
)  # fmt: skip
NEIGHBOUR_DISTANCE = Variable(
    "distance", (METRIC, SAMPLE, RANK), ("float64",), "1",
    "distance to the neighbour, 1 is full scale",
)  # fmt: skip
NEIGHBOUR_LABEL = Variable(
    "neighbour_label", (METRIC, SAMPLE, RANK), ("int32",), None,
    "code into class_names of the neighbour, -1 where there is none",
)  # fmt: skip


def in_order(array: Any, variable: Variable) -> Any:
    """Return an `xarray.DataArray` with its dimensions in the order of a variable.

    Raises
    ------
    SchemaError
        Where it lacks a dimension, or has one more.
    """
    given = tuple(str(dim) for dim in array.dims)
    extra = [dim for dim in given if dim not in variable.dims + variable.optional]
    missing = [dim for dim in variable.dims if dim not in given]
    if extra or missing:
        allowed = [variable.dims, variable.dims + variable.optional]
        expected = " or ".join(str(dims) for dims in dict.fromkeys(allowed))
        raise SchemaError(
            f"'{variable.name}' has dimensions {given}, expected {expected} in any order; "
            f"{_cure_of_dims(array, missing, extra)}"
        )
    order = [dim for dim in variable.dims + variable.optional if dim in given]
    return array if list(given) == order else array.transpose(*order)


def conform(array: Any, variable: Variable) -> Any:
    """Return an `xarray.DataArray` in the order and byte order of a variable.

    Raises
    ------
    SchemaError
        Where it lacks a dimension, has one more, or is of another dtype.
    """
    ordered = in_order(array, variable)
    if array.dtype.name not in variable.dtypes:
        raise SchemaError(
            f"'{variable.name}' has dtype {array.dtype}, expected "
            f"{' or '.join(variable.dtypes)}; use .astype() where no value is lost by it"
        )
    return ordered if array.dtype.isnative else ordered.astype(array.dtype.newbyteorder("="))


def _cure_of_dims(array: Any, missing: list[str], extra: list[str]) -> str:
    """Return what brings an array to its dimensions, by what it looks like."""
    if missing and extra:
        dim, other = missing[0], extra[0]
        swapped = dim in array.coords and array.coords[dim].dims == (other,)
        change = f".{'swap_dims' if swapped else 'rename'}({{'{other}': '{dim}'}})"
        return f"use {change} where '{other}' is '{dim}'"
    if extra:
        return f"choose one step of '{extra[0]}' with .isel({extra[0]}=0), or .rename() it"
    dim = missing[0]
    if dim in array.coords:
        return f"one step of '{dim}' was chosen: with a list, .isel({dim}=[0]), it stays"
    return f"where one step of '{dim}' is chosen, with a list, .isel({dim}=[0]), it stays"


def pick(dataset: Any, variable: Variable) -> Any:
    """Return a variable of a data set, as `conform` does; `SchemaError` where it has none."""
    if variable.name not in dataset.variables:
        known = ", ".join(f"'{name}'" for name in dataset.variables) or "none"
        raise SchemaError(f"no variable '{variable.name}', expected it among those there: {known}")
    return conform(dataset[variable.name], variable)
