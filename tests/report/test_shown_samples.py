"""What a report shows of single samples is what was written of them."""

from __future__ import annotations

import pytest
from jobs_for_tests import run
from sources_for_tests import NAMES, make_arrays
from stores_for_tests import swapped

import pipeline
from pipeline.core.errors import DamagedError
from pipeline.report.shown_samples import read_distances
from pipeline.sources.arrays import from_arrays


@pytest.mark.parametrize("array", ["distance", "sample"])
def test_distances_of_other_samples_are_not_taken_for_those_of_one(tmp_path, array):
    """The files of two steps of the second pass fit each other's place."""
    source = from_arrays(make_arrays({"train": 16, "test": 16}), NAMES)
    images = pipeline.ingest(source, tmp_path / "images.zarr", 8)
    made = run(images, tmp_path / "run", distances="write")
    wanted = [(0, ("test", 2)), (1, ("test", 9))]
    found = read_distances(made.path, made.manifest, wanted)
    for _, (split, sample) in wanted:
        expected = made.distances.isel(sample=sample)
        assert (found[split, sample] == expected.values).all()
    file = "c/0/{}/0" if array == "distance" else "c/{}"
    names = [f"distances.zarr/{array}/{file.format(number)}" for number in (0, 1)]
    with (
        swapped(made.path, *names),
        pytest.raises(DamagedError, match="is not the file that was written there"),
    ):
        read_distances(made.path, made.manifest, wanted)
