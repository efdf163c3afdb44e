"""A shard that is read is the one that was written there, or holds the samples that it should."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from sources_for_tests import NAMES, make_arrays
from stores_for_tests import swapped

import pipeline
from pipeline.core.errors import DamagedError
from pipeline.sources.arrays import from_arrays

SHARD = 8
COUNT = 12  # the second shard of a split is not full
SPLITS = ("train", "test")
OTHER = "is not the file that was written there"


def make_splits():
    """Make two splits of as many images, no label of which is where it is in the other."""
    arrays = make_arrays(dict.fromkeys(SPLITS, COUNT))
    return arrays | {"test": (arrays["test"][0], (arrays["test"][1] + 1) % len(NAMES))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    images = pipeline.ingest(from_arrays(make_splits(), NAMES), folder / "images.zarr", SHARD)
    job = {"name": "job", "images": str(images), "output": str(folder / "run")}
    return pipeline.run_job(pipeline.make_job(job))


def same_file_of_both(array, number):
    end = {"image": f"{number}/0/0", "label": number}[array]
    return [f"{split}/{array}/c/{end}" for split in SPLITS]


def read(images, array, **part):
    """Read a part of an array of the split `test`."""
    return pipeline.open_images(images, "test")[array].isel(part).load()


PARTS = {
    "all": {},
    "the end": {"sample": slice(9, None)},
    "the last": {"sample": -1},
    "some": {"sample": [11, 2]},
    "every second": {"sample": slice(None, None, 2)},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("array", ["image", "label"])
def test_the_last_shard_of_another_split_is_not_taken_for_its_own(made, array, part):
    """It decodes and has as many entries; nothing but its fingerprint tells it from its own."""
    with (
        swapped(made.images, *same_file_of_both(array, 1)),
        pytest.raises(DamagedError, match=OTHER),
    ):
        read(made.images, array, **part)
    read(made.images, array, **part)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("array", ["image", "label"])
def test_pictures_and_explanations_read_nothing_of_another_split(made, tmp_path, array, number):
    sample = number * SHARD
    with swapped(made.images, *same_file_of_both(array, number)):
        with pytest.raises(DamagedError, match=OTHER):
            pipeline.explain(made.path, "test", sample)
        if number == 0:  # the first shard is drawn
            with pytest.raises(DamagedError, match=OTHER):
                pipeline.draw_grid(made.images, tmp_path / "grid.png", "test")
    pipeline.explain(made.path, "test", sample)


def test_nothing_is_appended_to_the_shard_of_another_split(made, tmp_path):
    images = shutil.copytree(made.images, tmp_path / "images.zarr")
    more = from_arrays(make_arrays({"test": 7}, seed=1), NAMES)
    names = same_file_of_both("image", 1)
    before = [(images / name).read_bytes() for name in names]
    with swapped(images, *names), pytest.raises(DamagedError, match=OTHER):
        pipeline.ingest(more, images, append=True)
    assert [(images / name).read_bytes() for name in names] == before
    pipeline.ingest(more, images, append=True)
    expected = [make_splits()["test"][0], make_arrays({"test": 7}, seed=1)["test"][0]]
    np.testing.assert_array_equal(read(images, "image"), np.concatenate(expected))


def test_what_was_opened_can_be_read_when_samples_were_added_since(made, tmp_path):
    """The last shard has another fingerprint then, and holds what it should at its beginning."""
    images = shutil.copytree(made.images, tmp_path / "images.zarr")
    opened = pipeline.open_images(images, "test")
    more = from_arrays(make_arrays({"test": 3}, seed=1), NAMES)
    pipeline.ingest(more, images, append=True)
    for name, expected in zip(("image", "label"), make_splits()["test"], strict=True):
        np.testing.assert_array_equal(opened[name], expected)
    with swapped(images, *same_file_of_both("label", 1)), pytest.raises(DamagedError, match=OTHER):
        opened.load()
