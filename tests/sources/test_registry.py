"""Every kind of source: found by its name and content, and the same images give the same store."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from PIL import Image

import pipeline
from pipeline.config.job_settings import load_job, make_images
from pipeline.core.errors import ConfigError, ConflictError, IncompleteError
from pipeline.core.paths import short_name
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import find_kind, open_source, release
from pipeline.storage import manifest

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "workflows" / "sources"
NAMES = ["3", "7"]
# from the whole of mnist_sample every 30th image; one of each split and class is what matters
STEP = 30


@pytest.fixture(scope="module")
def sample(real_datasets, tmp_path_factory):
    """A part of mnist_sample in every form, below `data`, as `workflows/sources` has it."""
    folder = tmp_path_factory.mktemp("forms")
    root = folder / "data" / "mnist_sample"
    files = {"train": [], "valid": []}
    with tarfile.open(real_datasets / "mnist_sample.tgz") as archive:
        members = [member for member in archive if member.name.endswith(".png")]
        for member in sorted(members, key=lambda member: member.name)[::STEP]:
            _, split, label, name = member.name.split("/")
            place = root / split / label / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.extractfile(member).read())
            files[split].append(place)
    for form in (_as_tar, _as_webdataset, _as_parquet, _as_numpy, _as_list, _as_xarray):
        form(folder / "data", files)
    return folder


def _label(file):
    return file.parent.name


def _as_tar(data, files):
    with tarfile.open(data / "mnist_sample.tgz", "w:gz") as archive:
        for file in [file for split in files.values() for file in split]:
            archive.add(file, file.relative_to(data).as_posix())


def _as_webdataset(data, files):
    (data / "webdataset").mkdir()
    for split, shards in (("train", 4), ("valid", 2)):
        for shard, part in enumerate(np.array_split(np.arange(len(files[split])), shards)):
            name = data / "webdataset" / f"{split}-{shard:03}.tar"
            with tarfile.open(name, "w") as archive:
                for number in part:
                    file = files[split][number]
                    for suffix, content in (
                        ("png", file.read_bytes()), ("cls", _label(file).encode()),
                    ):  # fmt: skip
                        member = tarfile.TarInfo(f"{number:06}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))


def _as_parquet(data, files):
    (data / "parquet").mkdir()
    features = {"label": {"_type": "ClassLabel", "names": NAMES}, "image": {"_type": "Image"}}
    for split, mine in files.items():
        table = pa.table({
            "image": [{"bytes": file.read_bytes(), "path": file.name} for file in mine],
            "label": [NAMES.index(_label(file)) for file in mine],
        })  # fmt: skip
        notes = {"huggingface": json.dumps({"info": {"features": features}})}
        name = data / "parquet" / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(notes), name, row_group_size=100)


def _arrays(mine):
    images = np.stack([np.asarray(Image.open(file)) for file in mine])
    return images, np.array([NAMES.index(_label(file)) for file in mine])


def _as_numpy(data, files):
    arrays = {"class_names": np.array(NAMES)}
    for split, mine in files.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = _arrays(mine)
    np.savez(data / "mnist_sample.npz", **arrays)
    np.savez_compressed(data / "packed.npz", **arrays)


def _as_list(data, files):
    root = data / "mnist_sample"
    with (root / "files.csv").open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["file", "digit", "part"])
        for split, mine in files.items():
            for file in mine:
                writer.writerow([file.relative_to(root), _label(file), split])


def _as_xarray(data, files):
    for split, mine in files.items():
        images, labels = _arrays(mine)
        dataset = xr.Dataset(
            {"pixels": (("row", "time", "column"), images.transpose(1, 0, 2)),
             "digit": ("time", labels.astype("int16"))},
            attrs={"class_names": NAMES},
        )  # fmt: skip
        dataset.to_zarr(data / "labelled.zarr", group=split, mode="a", consolidated=False)


@pytest.fixture(scope="module")
def expected(sample):
    """The digest of the images as arrays, read with Pillow by itself."""
    arrays = {}
    for split in ("train", "valid"):
        files = sorted((sample / "data" / "mnist_sample" / split).glob("*/*.png"))
        arrays[split] = _arrays(files)
    store = pipeline.ingest(pipeline.from_arrays(arrays, NAMES), sample / "expected.zarr")
    return manifest.read_manifest(store, manifest.IMAGES)["digest"]


@pytest.mark.datasets
@pytest.mark.parametrize(
    "kind", ["folder", "tar", "webdataset", "parquet", "numpy", "list", "xarray"]
)
def test_the_job_of_each_kind_makes_the_same_store(sample, expected, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(sample)
    store, output = tmp_path / "s.zarr", tmp_path / "run"
    job = load_job(JOBS / f"{kind}.yml", [f"images.store={store}"], output)
    run = pipeline.run_job(job)
    assert manifest.read_manifest(store, manifest.IMAGES)["digest"] == expected
    assert pipeline.digest(store)["images"] == expected
    assert run.metrics["l2"]["accuracy"] > 0.9
    assert pipeline.run_job(job).manifest["finished"] == run.manifest["finished"]


@pytest.mark.datasets
@pytest.mark.parametrize(
    "text",
    [
        "mnist_sample.tgz",
        "mnist_sample",
        "webdataset",
        "packed.npz",
        "webdataset/{train,valid}-*.tar",
    ],
)
def test_one_text_is_enough_for(sample, expected, tmp_path, monkeypatch, text):
    monkeypatch.chdir(sample / "data")
    store = pipeline.ingest(text, tmp_path / "s.zarr")
    assert manifest.read_manifest(store, manifest.IMAGES)["digest"] == expected


@pytest.mark.datasets
def test_the_steps_run_apart_make_the_same_store(sample, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(sample)
    store = tmp_path / "s.zarr"
    arguments = {"output": store, "shard_samples": 50}
    source = "data/mnist_sample.tgz"
    with pytest.raises(IncompleteError, match="was not begun"):
        pipeline.ingest_partitions(source, 0, 1, **arguments)
    number = pipeline.plan_ingest(source, **arguments)
    assert number == 11
    pipeline.ingest_partitions(source, 4, number, **arguments)
    with pytest.raises(IncompleteError, match=r"4 of 11 partitions.*0, 1, 2, 3"):
        pipeline.finish_ingest(source, **arguments)
    with pytest.raises(ConfigError, match="expected numbers from 0 to 11"):
        pipeline.ingest_partitions(source, 0, 12, **arguments)
    with pytest.raises(ConflictError):
        pipeline.ingest_partitions("data/mnist_sample.npz", 0, 4, **arguments)
    pipeline.ingest_partitions(source, 0, 4, **arguments)
    pipeline.ingest_partitions(source, 3, 5, **arguments)  # again: nothing to do
    pipeline.finish_ingest(source, **arguments)
    assert manifest.read_manifest(store, manifest.IMAGES)["digest"] == expected
    assert pipeline.plan_ingest(source, **arguments) == 0


def test_steps_of_floats_keep_the_range_that_was_measured_first(tmp_path):
    images = np.random.default_rng(0).normal(size=(30, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "f.npz", train_images=images, train_labels=np.arange(30) % 2)
    source, store = str(tmp_path / "f.npz"), tmp_path / "s.zarr"
    assert pipeline.plan_ingest(source, store, 7) == 5
    pipeline.ingest_partitions(source, 0, 5, store, 7)
    pipeline.finish_ingest(source, store, 7)
    whole = pipeline.ingest(source, tmp_path / "whole.zarr")
    assert pipeline.digest(store) == pipeline.digest(whole)
    found = xr.open_zarr(store, group="train")["image"].values
    packing = manifest.read_manifest(store, manifest.IMAGES)["provenance"]["packing"]
    assert packing["range"] == [images.min(), images.max()]
    assert np.abs(found - images.astype(np.float64)).max() <= packing["rounding_error"] * 1.01


def test_a_torchvision_set_is_found_by_name(tmp_path):
    options = {"size": 12, "image_size": [3, 8, 6], "num_classes": 4}
    images = {"source": "torchvision:FakeData", "options": options}
    path = pipeline.ingest(images, tmp_path / "s.zarr")
    (split,) = pipeline.describe(path)["splits"].values()
    assert (split["count"], split["shape"], split["dtype"]) == (12, [8, 6, 3], "uint8")


def photographs(folder, bad=1):
    """Files of all sizes and modes, some of them damaged."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(60):
            place = folder / split / ("ab"[number % 2]) / f"{number:02}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(70, 120, 2)
            mode = ("RGB", "L")[number % 5 == 0]
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(place)
    for number in range(bad):
        victim = folder / "train" / "a" / f"{2 * number:02}.jpg"
        victim.write_bytes(victim.read_bytes()[:300])


def test_the_job_of_photographs_brings_them_to_one_shape(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "data" / "photographs")
    run = pipeline.run_job(load_job(JOBS / "photographs.yml", output=tmp_path / "run"))
    found = pipeline.describe(run.images)
    assert {k: (v["count"], v["shape"]) for k, v in found["splits"].items()} == {
        "test": (60, [64, 64, 3]), "train": (59, [64, 64, 3]),
    }  # fmt: skip
    assert found["samples"] == {"listed": 120, "left_out": {"truncated": 1}}
    assert found["provenance"]["conversion"]["resize"]
    first = tmp_path / "data" / "photographs" / "test" / "a" / "00.jpg"
    from torchvision.transforms.v2 import functional

    image = functional.resize(Image.open(first).convert("RGB"), 72, antialias=True)
    expected = np.asarray(functional.center_crop(image, [64, 64]))
    np.testing.assert_array_equal(pipeline.open_images(run.images, "test")["image"][0], expected)


def test_mended_files_are_read_again_and_the_rest_is_not_lost(tmp_path):
    folder = tmp_path / "photographs"
    photographs(folder, bad=2)
    images = {"source": str(folder), "resize": [8, 8], "mode": "L"}
    with pytest.raises(pipeline.core.errors.BadSamplesError):
        pipeline.ingest(images, tmp_path / "s.zarr", 10)
    whole = tmp_path / "whole"
    photographs(whole, bad=0)
    for name in ("00", "02"):
        victim = folder / "train" / "a" / f"{name}.jpg"
        victim.write_bytes((whole / "train" / "a" / f"{name}.jpg").read_bytes())
    path = pipeline.ingest(images, tmp_path / "s.zarr", 10)
    other = pipeline.ingest(images | {"source": str(whole)}, tmp_path / "other.zarr")
    assert pipeline.digest(path) == pipeline.digest(other)


@pytest.mark.parametrize("compacted", [False, True])
def test_removed_files_are_left_out_when_the_ingest_is_run_again(tmp_path, monkeypatch, compacted):
    folder = tmp_path / "photographs"
    photographs(folder, bad=2)
    images = {"source": str(folder), "resize": [8, 8], "mode": "L"}
    with monkeypatch.context() as patch:
        # stopped before anything is left out, or right after
        patch.setattr("pipeline.ingestion.steps.write_samples", lambda *_: 1 / 0)
        with pytest.raises((pipeline.core.errors.BadSamplesError, ZeroDivisionError)):
            pipeline.ingest(images, tmp_path / "s.zarr", 10, max_bad=2 if compacted else 0)
    for name in ("00", "02", "04"):
        (folder / "train" / "a" / f"{name}.jpg").unlink()
    path = pipeline.ingest(images, tmp_path / "s.zarr", 10)
    other = pipeline.ingest(images, tmp_path / "other.zarr")
    assert pipeline.digest(path) == pipeline.digest(other)
    assert xr.open_zarr(path, group="train").sizes["sample"] == 57


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.yml")), ids=lambda path: path.stem)
def test_every_job_of_a_source_is_valid(job):
    assert load_job(job).images.title


def test_there_is_a_job_for_every_kind():
    kinds = {load_job(job).images.source or "splits" for job in JOBS.glob("*.yml")}
    assert len(kinds) == len(list(JOBS.glob("*.yml")))
    assert {"folder", "tar", "webdataset", "parquet", "numpy", "list", "xarray", "torchvision"} <= {
        job.stem for job in JOBS.glob("*.yml")
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b/mnist_sample.tgz", "mnist_sample"),
        ("shards.tar.gz", "shards"),
        ("train-{0000..0147}.tar", "train"),
        ("s3://bucket/photos/", "photos"),
        ("https://host/x.npz?token=1234", "x"),
        ("torchvision:CIFAR10", "CIFAR10"),
        ("my.folder/v1.2", "v1.2"),
        ("*.tar", "images"),
    ],
)
def test_a_store_is_named_after_its_source(text, name):
    assert short_name(text) == name


def test_the_kind_may_be_told_and_is_found_otherwise(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2, 2), np.uint8))
    assert find_kind(make_images(str(tmp_path / "x.npy"))) == "numpy"
    assert find_kind(make_images(str(tmp_path))) == "numpy"
    assert find_kind(make_images("digits")) == "catalog"
    (tmp_path / "folder").mkdir()
    assert find_kind(make_images(str(tmp_path / "folder"))) == "folder"


def test_the_listing_of_a_source_is_removed_when_it_is_released(tmp_path):
    photographs(tmp_path / "p", bad=0)
    source = open_source({"source": str(tmp_path / "p"), "resize": [8, 8], "mode": "L"})
    assert isinstance(source, EncodedSource)
    assert source.listing.exists()
    release(source)
    assert not source.listing.exists()
