"""Each variable of pixsim declared once: its name, dimensions, dtypes, units and meaning.

Functions that take labelled arrays call `check` at the door, so a wrong array fails with a
sentence about dimensions and dtypes instead of an error from deep inside a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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


class LabelledArray(Protocol):
    """What `check` needs to know of an `xarray.DataArray`."""

    @property
    def dims(self) -> tuple[Any, ...]: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class Variable:
    """One variable: `dims` are required in this order, `optional` may follow them."""

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


def check(array: LabelledArray, variable: Variable) -> None:
    """Raise `SchemaError` unless `array` has the dimensions and dtype of `variable`."""
    given = tuple(str(dim) for dim in array.dims)
    allowed = [variable.dims, variable.dims + variable.optional]
    if given not in allowed:
        expected = " or ".join(str(dims) for dims in dict.fromkeys(allowed))
        raise SchemaError(
            f"'{variable.name}' has dimensions {given}, expected {expected}; "
            "use .transpose() or .rename() to bring it there"
        )
    if str(array.dtype) not in variable.dtypes:
        raise SchemaError(
            f"'{variable.name}' has dtype {array.dtype}, expected "
            f"{' or '.join(variable.dtypes)}; use .astype() where no value is lost by it"
        )


def pick(dataset: Any, variable: Variable) -> Any:
    """Return a variable of a data set, checked; raise `SchemaError` where it has none."""
    if variable.name not in dataset.variables:
        known = ", ".join(f"'{name}'" for name in dataset.variables) or "none"
        raise SchemaError(f"no variable '{variable.name}', expected it among those there: {known}")
    check(dataset[variable.name], variable)
    return dataset[variable.name]
