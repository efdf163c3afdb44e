"""Variables and classes: checked at the door."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pipeline.core.errors import SchemaError
from pipeline.core.schema import DISTANCE, IMAGE, LABEL, conform, pick


@pytest.mark.parametrize("dims", [("sample", "y", "x"), ("sample", "y", "x", "channel")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_of_both_kinds_pass_as_they_are(dims, dtype):
    array = xr.DataArray(np.zeros((2,) * len(dims), dtype), dims=dims)
    assert conform(array, IMAGE) is array


def test_dimensions_come_in_any_order_and_bytes_too():
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    turned = xr.DataArray(values.astype(">u2"), dims=("y", "x", "sample"))
    found = conform(turned, IMAGE)
    assert found.dims == ("sample", "y", "x")
    assert found.dtype == np.dtype("=u2")
    assert np.array_equal(found, np.moveaxis(values, -1, 0))


@pytest.mark.parametrize(("change", "cure"), [
    (lambda d: d.rename(sample="time"), "use .rename({'time': 'sample'}) where 'time' is"),
    (lambda d: d.swap_dims(sample="id"), "use .swap_dims({'id': 'sample'}) where 'id' is"),
    (lambda d: d.expand_dims(time=2), "choose one step of 'time' with .isel(time=0)"),
    (lambda d: d.isel(sample=0), "one step of 'sample' was chosen: with a list, .isel(sample=[0])"),
    (lambda d: d.isel(y=0), "where one step of 'y' is chosen, with a list, .isel(y=[0])"),
])  # fmt: skip
def test_the_error_names_the_dimensions_and_a_cure_that_works(change, cure):
    array = xr.DataArray(
        np.zeros((2, 2, 2), "uint8"), {"sample": [0, 1], "id": ("sample", [5, 7])}, IMAGE.dims
    )
    cures = {
        "rename": lambda d: d.rename(time="sample"), "swap": lambda d: d.swap_dims(id="sample"),
        "choose": lambda d: d.isel(time=0), "one": lambda _: array.isel(sample=[0]),
        "where": lambda _: array.isel(y=[0]),
    }  # fmt: skip
    with pytest.raises(SchemaError) as caught:
        conform(change(array), IMAGE)
    message = str(caught.value)
    assert f"'image' has dimensions {change(array).dims}" in message
    assert "('sample', 'y', 'x') or ('sample', 'y', 'x', 'channel') in any order" in message
    assert cure in message
    (way,) = [name for name in cures if cure.removeprefix("use .").startswith(name)]
    assert conform(cures[way](change(array)), IMAGE).dims == IMAGE.dims


def test_another_dtype_and_a_missing_variable_are_refused():
    with pytest.raises(SchemaError, match=r"dtype int64, expected int32; use .astype"):
        conform(xr.DataArray(np.zeros(2, "int64"), dims="sample"), LABEL)
    with pytest.raises(SchemaError, match=r"no variable 'label', expected it among.*: 'a'"):
        pick(xr.Dataset({"a": 1}), LABEL)


def test_attributes_hold_units_where_there_are_any():
    assert DISTANCE.attributes["units"] == "1"
    assert "units" not in IMAGE.attributes
