"""An array that is there is used again only if it is the same; nothing is cast."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from sources_for_tests import NAMES, make_arrays

import pipeline
from pipeline.core.errors import BadSamplesError, LabelError, StoreError
from pipeline.core.partitions import Layout
from pipeline.execution.checkpoints import Checkpoints
from pipeline.sources.arrays import from_arrays
from pipeline.storage import image_store, zarr_arrays
from pipeline.storage.zarr_arrays import ArrayTemplate

SHARD = 8
ARRAY = {
    "dims": ("sample", "y"), "shape": (12, 3), "dtype": "uint8", "chunks": (2, 3),
    "shards": (4, 3), "fill_value": 0, "attributes": {"scale_factor": 0.5}, "compressed": True,
}  # fmt: skip
OTHERS = {
    "dims": ("sample", "x"), "shape": (16, 3), "dtype": "uint16", "chunks": (4, 3),
    "shards": (6, 3), "fill_value": 7, "attributes": {"scale_factor": 0.25}, "compressed": False,
}  # fmt: skip


def filled(path):
    """An array with a shard in it; return the file of the shard."""
    zarr_arrays.create_group(path, {})
    zarr_arrays.create_array(path, "a", ArrayTemplate(**ARRAY))
    zarr_arrays.write_shard(path, "a", 0, 0, np.ones((4, 3), np.uint8))
    (file,) = (item for item in (path / "a" / "c").rglob("*") if item.is_file())
    return file


def test_an_array_that_is_the_same_is_kept_with_what_is_in_it(tmp_path):
    file = filled(tmp_path / "s")
    zarr_arrays.create_array(tmp_path / "s", "a", ArrayTemplate(**ARRAY))
    assert file.exists()


@pytest.mark.parametrize("key", ARRAY)
def test_an_array_that_differs_in_anything_is_made_anew(tmp_path, key):
    file = filled(tmp_path / "s")
    zarr_arrays.create_array(tmp_path / "s", "a", ArrayTemplate(**ARRAY | {key: OTHERS[key]}))
    assert not file.exists()
    new = json.loads((tmp_path / "s/a/zarr.json").read_text())
    zarr_arrays.create_group(tmp_path / "t", {})
    zarr_arrays.create_array(tmp_path / "t", "a", ArrayTemplate(**ARRAY | {key: OTHERS[key]}))
    assert new == json.loads((tmp_path / "t/a/zarr.json").read_text())


@pytest.mark.parametrize("torn", ["", "{"])
@pytest.mark.parametrize("document", ["a/zarr.json", "zarr.json"])
def test_metadata_that_a_power_cut_left_torn_is_made_anew(tmp_path, document, torn):
    filled(tmp_path / "s")
    (tmp_path / "s" / document).write_text(torn)
    zarr_arrays.create_group(tmp_path / "s", {"full_scale": 255})
    zarr_arrays.create_array(tmp_path / "s", "a", ArrayTemplate(**ARRAY))
    assert zarr.open_group(tmp_path / "s", mode="r")["a"].shape == (12, 3)


WRONG = {
    "wider": np.full((4, 3), 300, np.uint16), "floats": np.full((4, 3), 0.5),
    "signed": np.full((4, 3), -1, np.int8), "other bytes": np.ones((4, 3), ">u2"),
    "to be stretched": np.ones((4, 1), np.uint8), "one axis": np.ones(4, np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("axis", [0, 1])
def test_no_values_are_cast_or_stretched_to_be_written(tmp_path, kind, axis):
    zarr_arrays.create_group(tmp_path, {})
    turned = (lambda pair: pair) if axis == 0 else (lambda pair: pair[::-1])
    shape, chunks, shards = turned((12, 3)), turned((2, 3)), turned((4, 3))
    template = ArrayTemplate(("p", "q"), shape, "uint8", chunks, shards)
    zarr_arrays.create_array(tmp_path, "a", template)
    values = WRONG[kind] if axis == 0 else np.ascontiguousarray(WRONG[kind].T)
    if kind == "one axis" and axis:
        values = np.ones((3, 4, 1), np.uint8)
    with pytest.raises(StoreError, match=r"a: is an array of uint8 .*nothing is cast"):
        zarr_arrays.write_shard(tmp_path, "a", axis, 0, values)
    assert not (tmp_path / "a" / "c").exists()


def test_labels_and_images_of_a_shard_are_not_cast(tmp_path):
    template = image_store.SplitTemplate(4, (2, 2), "uint8", Layout(4, 4))
    image_store.create_images(tmp_path, {}, {"train": template})
    images, labels = np.ones((4, 2, 2), np.uint8), np.zeros(4, np.int32)
    for wrong in ((images.astype(np.uint16), labels), (images, labels.astype(np.int64))):
        with pytest.raises(StoreError, match="nothing is cast"):
            image_store.write_images(tmp_path, "train", 0, *wrong)
    image_store.write_images(tmp_path, "train", 0, images, labels)


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), np.ones((2, 3), np.int32), np.ones(3, int)])
def test_sums_are_not_cast(tmp_path, wrong):
    kept = Checkpoints(tmp_path, "this pass", (2, 3), 4, 1)
    with pytest.raises(StoreError, match="holds int64"):
        kept.save("a", wrong)


class Labels:
    """A source of one's own, whose labels have any dtype."""

    class_names, full_scale, provenance = NAMES, 255, {"kind": "mine"}

    def __init__(self, labels):
        self.labels = labels
        self.inner = from_arrays(make_arrays({"train": len(labels)}), NAMES)

    def splits(self):
        return self.inner.splits()

    def read(self, split, start, stop):
        block = self.inner.read(split, start, stop)
        block.labels.flags.writeable = True
        return type(block)(block.images, self.labels[start:stop], block.origins, {})

    def close(self):
        pass


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_labels_of_any_integers_are_kept(tmp_path, dtype):
    path = pipeline.ingest(Labels(np.array([2, 0, 1], dtype)), tmp_path / "s")
    assert pipeline.open_images(path).label.values.tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_a_label_beyond_the_classes_does_not_become_one_of_them(tmp_path, dtype):
    largest = np.iinfo(dtype).max if dtype == np.uint8 else 2**32 + 1
    with pytest.raises(BadSamplesError, match=f"label {largest}, expected 0 to 2"):
        pipeline.ingest(Labels(np.array([0, largest], dtype)), tmp_path / "s")


@pytest.mark.parametrize("labels", [np.array([0.0, 1.7]), np.array(["0", "1"])])
def test_labels_that_are_no_integers_are_refused(tmp_path, labels):
    with pytest.raises(LabelError, match=r"expected .* integers"):
        pipeline.ingest(Labels(labels), tmp_path / "s")
