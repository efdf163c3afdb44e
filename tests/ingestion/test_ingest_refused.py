"""What no store can be made of is refused, and nothing is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ingests_for_tests import NAMES, SHARD, Watched, digest_of, holds, make_arrays

from pipeline.core.blocks import Block, SplitInfo
from pipeline.core.errors import BadSamplesError, ConfigError, SchemaError, ShapeError, SourceError
from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import from_arrays
from pipeline.storage import manifest
from pipeline.storage.image_content import digest_images


@pytest.mark.parametrize("label", [3, 2**31 - 1, -2])
def test_a_label_outside_the_classes_is_named_with_its_sample_and_the_expected(tmp_path, label):
    class Careless(Watched):  # from_arrays would refuse the label itself
        def read(self, split, start, stop):
            block = super().read(split, start, stop)
            if split == "train" and start <= 13 < stop:
                block = replace(block, labels=block.labels.copy())
                block.labels[13 - start] = label
            return block

    source = Careless()
    with pytest.raises(BadSamplesError) as caught:
        ingest(source, tmp_path / "s", SHARD)
    message = str(caught.value)
    assert f"label {label}, expected 0 to 2" in message
    assert "'train' sample 13, train[13]" in message
    assert manifest.kind_of(tmp_path / "s") is None
    assert not (tmp_path / "s" / manifest.MANIFEST).exists()


@pytest.mark.parametrize(("pixel", "scale"), [(17, 16), (255, 254)])
def test_a_pixel_above_the_full_scale_is_named_with_both(tmp_path, pixel, scale):
    arrays = {k: (v // 255 * 0, codes) for k, (v, codes) in make_arrays().items()}
    arrays["train"][0][20, 1, 1] = pixel
    with pytest.raises(ShapeError) as caught:
        ingest(from_arrays(arrays, NAMES, full_scale=scale), tmp_path / "s", SHARD)
    message = str(caught.value)
    assert all(text in message for text in ("'train'", f"value {pixel}", str(scale)))
    assert not (tmp_path / "s" / manifest.MANIFEST).exists()


@pytest.mark.parametrize("splits", [{}, {"train": 0}, {"train": 0, "test": 0}])
def test_a_source_without_any_image_is_refused_and_nothing_is_written(tmp_path, splits):
    source = Watched()
    source.splits = lambda: {k: SplitInfo(n, (4, 3), "uint8") for k, n in splits.items()}
    with pytest.raises(SourceError, match="no image, expected one at least"):
        ingest(source, tmp_path / "s", SHARD)
    assert not (tmp_path / "s").exists()


def test_an_empty_split_beside_another_is_kept(tmp_path):
    arrays = make_arrays()
    arrays["test"] = tuple(array[:0] for array in arrays["test"])
    path = ingest(from_arrays(arrays, NAMES), tmp_path / "s", SHARD)
    assert holds(path, arrays)
    assert digest_images(path) == digest_of(path)


@pytest.mark.parametrize("wrong", ["count", "shape", "type"])
def test_a_source_that_gives_other_images_than_it_announced_is_refused(tmp_path, wrong):
    source = Watched()
    read = source.inner.read

    def lies(split, start, stop):
        block = read(split, start, stop)
        images = {
            "count": block.images[:-1],
            "shape": block.images[:, :2],
            "type": block.images.astype(np.uint16),
        }[wrong]
        return Block(images, block.labels, block.origins)

    source.read = lies
    with pytest.raises(ShapeError, match=r"the source gave .*expected \(\d, 4, 3\) uint8"):
        ingest(source, tmp_path / "s", SHARD)
    assert manifest.kind_of(tmp_path / "s") is None


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.complex64])
def test_images_of_another_type_are_refused(tmp_path, dtype):
    arrays = {k: (v.astype(dtype), codes) for k, (v, codes) in make_arrays().items()}
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        ingest(from_arrays(arrays, NAMES), tmp_path / "s")
    assert manifest.kind_of(tmp_path / "s") is None


@pytest.mark.parametrize("shard", [0, -1])
def test_a_shard_without_images_is_refused(tmp_path, shard):
    with pytest.raises(ConfigError, match=f"{shard} images per shard"):
        ingest(Watched(), tmp_path / "s", shard)
    assert not (tmp_path / "s").exists()


def test_a_source_object_needs_a_place_for_its_store():
    with pytest.raises(ConfigError, match="needs an output"):
        ingest(Watched())


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"max_bads": 1}, TypeError, r"ingest\(\) got an unexpected .* 'max_bads'; .*'max_bad'\?"),
    ({"storage_options": 3}, SchemaError, r"ingest\(\): 'storage_options' is .*3.*a mapping"),
    ({"profile": 3}, SchemaError, r"ingest\(\): 'profile' is .*3.*a path"),
])  # fmt: skip
def test_an_option_that_there_is_not_or_that_is_none_is_refused(tmp_path, keywords, error, message):
    with pytest.raises(error, match=message):
        ingest("digits", tmp_path / "s", **keywords)
    assert not (tmp_path / "s").exists()
