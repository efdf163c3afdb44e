"""Variables and classes: checked at the door."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pipeline.core.errors import SchemaError
from pipeline.core.schema import DISTANCE, IMAGE, LABEL, check


@pytest.mark.parametrize("dims", [("sample", "y", "x"), ("sample", "y", "x", "channel")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_of_both_kinds_pass(dims, dtype):
    check(xr.DataArray(np.zeros((2,) * len(dims), dtype), dims=dims), IMAGE)


def test_the_error_names_what_was_found_what_was_expected_and_the_cure():
    turned = xr.DataArray(np.zeros((2, 2, 2), "uint8"), dims=("y", "x", "sample"))
    with pytest.raises(SchemaError) as caught:
        check(turned, IMAGE)
    message = str(caught.value)
    assert "('y', 'x', 'sample')" in message
    assert "('sample', 'y', 'x') or ('sample', 'y', 'x', 'channel')" in message
    assert ".transpose()" in message
    with pytest.raises(SchemaError, match=r"dtype int64, expected int32; use .astype"):
        check(xr.DataArray(np.zeros(2, "int64"), dims="sample"), LABEL)


def test_attributes_hold_units_where_there_are_any():
    assert DISTANCE.attributes["units"] == "1"
    assert "units" not in IMAGE.attributes
