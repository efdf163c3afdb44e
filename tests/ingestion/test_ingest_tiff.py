"""TIFF files of bands and of floats, from files to a run: channels, and a range that is stated."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from image_files_for_tests import write_zip

import pipeline
from pipeline.core.errors import BadSamplesError, ConfigError, SourceError
from pipeline.images.conversion import Conversion
from pipeline.sources.quantize import Packing

NAMES = ("field", "forest")


def write(root, make, count=4, splits=("train", "test")):
    """Write TIFF files of [y, x] or [y, x, channel] in folders of classes; return the images."""
    images = {}
    for split in splits:
        for code, name in enumerate(NAMES):
            for number in range(count):
                image = make(code)
                path = root / split / name / f"{number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                options = {"planarconfig": "contig"} if image.ndim == 3 else {}
                tifffile.imwrite(path, image, photometric="minisblack", **options)
                images.setdefault(split, []).append(image)
    return {split: np.stack(several) for split, several in images.items()}


def test_thirteen_bands_of_16_bits_are_thirteen_channels(tmp_path):
    rng = np.random.default_rng(0)
    images = write(
        tmp_path / "set",
        lambda code: rng.integers(3000 * code, 3000 * code + 4000, (6, 5, 13), np.uint16),
    )
    run = pipeline.run_job(
        {"name": "j", "cluster": "threads", "device": "cpu", "output": str(tmp_path / "run"),
         "images": {"source": str(tmp_path / "set"), "store": str(tmp_path / "s.zarr")}}
    )  # fmt: skip
    with pipeline.open_images(tmp_path / "s.zarr", "train") as train:
        assert train["image"].dims == ("sample", "y", "x", "channel")
        np.testing.assert_array_equal(train["image"].values, images["train"])
    means = np.stack([images["train"][4 * code :][:4].mean(0) for code in (0, 1)])
    np.testing.assert_allclose(run.prototypes["prototype"].values, means, rtol=0, atol=1e-9)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("value_range", [None, [-500.0, 2500.0]])
def test_floats_are_packed_into_a_range_that_is_stated(tmp_path, packed, value_range):
    rng = np.random.default_rng(0)
    images = write(
        tmp_path / "set", lambda code: rng.normal(1000 * code, 100, (6, 5)).astype(np.float32)
    )
    source = tmp_path / "set"
    if packed:
        files = sorted(source.rglob("*.tif"))
        pairs = [(str(file.relative_to(source)), file.read_bytes()) for file in files]
        source = write_zip(tmp_path / "set.zip", pairs)
    settings = {"source": str(source), "value_range": value_range, "shard": 3}
    store = pipeline.ingest(settings, tmp_path / "s.zarr")
    digest = pipeline.describe(store)["digest"]
    low, high = value_range or (
        float(min(some.min() for some in images.values())),
        float(max(some.max() for some in images.values())),
    )
    for split, expected in images.items():
        steps = np.rint((expected.astype(np.float64) - low) / (high - low) * 65535)
        with pipeline.open_images(store, split) as found:
            np.testing.assert_array_equal(found["image"].values, steps.astype(np.uint16))
            assert found["image"].attrs["add_offset"] == low
    # it is recognised, and mended from its source
    assert pipeline.ingest(settings, store) == store
    shard = max((p for p in (store / "train" / "image").rglob("*") if p.is_file()),
                key=lambda path: path.stat().st_size)  # fmt: skip
    shard.write_bytes(shard.read_bytes()[:-3])
    pipeline.verify(store, repair=True)
    assert pipeline.verify(store) == []
    assert pipeline.describe(store)["digest"] == digest


def test_floats_that_are_none_or_out_of_range_are_bad_samples(tmp_path):
    write(tmp_path / "set", lambda code: np.full((6, 5), code, np.float32), splits=("train",))
    for name, value in (("nan", np.nan), ("large", 99.0)):
        image = np.ones((6, 5), np.float32)
        image[2, 3] = value
        tifffile.imwrite(tmp_path / "set/train/field" / f"{name}.tif", image)
    settings = {"source": str(tmp_path / "set"), "value_range": [0, 1]}
    with pytest.raises(BadSamplesError) as error:
        pipeline.ingest(settings, tmp_path / "s.zarr")
    assert error.value.count == 2
    listed = (tmp_path / "s.zarr" / "bad_samples.csv").read_text()
    assert "pixels that are no numbers" in listed
    assert "has values from 1 to 99, expected 0 to 1; give a value_range" in listed
    store = pipeline.ingest(settings, tmp_path / "s.zarr", max_bad=2)
    with pipeline.open_images(store, "train") as found:
        assert set(np.unique(found["image"].values)) == {0, 65535}


def test_floats_of_several_sizes_are_packed_and_then_resized(tmp_path):
    rng = np.random.default_rng(0)
    shapes = iter([(6, 5), (8, 9), (12, 10), (7, 7)])
    make = lambda code: rng.normal(code, 1, next(shapes)).astype(np.float32)  # noqa: E731
    folder = tmp_path / "set" / "train"
    images = []
    for number in range(4):
        path = folder / NAMES[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append(make(number % 2))
        tifffile.imwrite(path, images[-1], photometric="minisblack")
    low, high = min(map(np.min, images)), max(map(np.max, images))
    store = pipeline.ingest(
        {"source": str(tmp_path / "set"), "resize": [4, 4]}, tmp_path / "s.zarr"
    )
    with pipeline.open_images(store, "train") as found:
        order = [0, 2, 1, 3]
        for at, number in enumerate(order):
            packed = Packing(float(low), float(high), measured=True).apply(images[number])
            expected = Conversion(resize=(4, 4)).apply(packed)
            np.testing.assert_array_equal(found["image"].values[at], expected)


def test_what_cannot_be_done_to_floats_or_bands_is_refused(tmp_path):
    write(tmp_path / "set", lambda code: np.full((6, 5), code, np.float32), splits=("train",))
    with pytest.raises(SourceError, match="depth: 8 is for images of 8 or 16 bits"):
        pipeline.ingest({"source": str(tmp_path / "set"), "depth": 8}, tmp_path / "s.zarr")
    write(tmp_path / "bands", lambda code: np.full((6, 5, 4), code, np.uint8), splits=("train",))
    with pytest.raises(ConfigError, match="value_range is for images of floats"):
        pipeline.ingest({"source": str(tmp_path / "bands"), "value_range": [0, 1]}, tmp_path / "b")
