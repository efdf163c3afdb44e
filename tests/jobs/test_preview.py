"""The plan of a job in plain values: what is known without reading a pixel."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from jobs_for_tests import make_arrays, make_images, make_settings

import pipeline
from pipeline.core.errors import MemoryLimitError
from pipeline.jobs import fit_pass, memory_model
from pipeline.sources.array_source import ArraySource
from pipeline.storage import store_array


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images.zarr")


def test_it_counts_what_the_run_then_does(images, tmp_path):
    settings = make_settings(images, tmp_path / "run", evaluate=["train", "test"])
    found = pipeline.forecast(settings)
    fit, evaluate = found["passes"]
    assert fit == {"name": "prototypes from 'train'", "partitions": 4, "tasks": 4, "reads": 1,
                   "images": 230, "bytes": 230 * 20}  # fmt: skip
    assert (evaluate["tasks"], evaluate["images"], evaluate["bytes"]) == (5, 320, 320 * 20)
    done = pipeline.run_job(settings)
    written = {file["path"]: file["files"] for file in found["files"]}
    assert len(list(done.path.glob("predictions/part-*.parquet"))) == evaluate["tasks"]
    assert written == {
        ".work/sums (until the prototypes are made)": 4,
        "prototypes.zarr": 1,
        "distances.zarr": 5,
        "predictions/part-*.parquet": 5,
        "metrics.json": 1,
        "highlights.json": 1,
        "report.html": 1,
        "manifest.json": 1,
    }
    assert done.manifest["arithmetic"] == found["arithmetic"]["reason"]
    sizes = {file["path"]: file["bytes"] for file in found["files"]}
    assert sizes["distances.zarr"] == sum(
        array.nbytes for array in (done.distances, *(done.distances[name] for name in (
            "sample", "label", "split"))))  # fmt: skip


def test_no_pixel_is_read(images, tmp_path, monkeypatch):
    shutil.rmtree(images / "train" / "image" / "c")
    shutil.rmtree(images / "test" / "image" / "c")
    monkeypatch.setattr(store_array.StoreArray, "__getitem__", lambda *_: pytest.fail("read"))
    assert pipeline.forecast(make_settings(images, tmp_path / "run"))["ingested"]


def test_nothing_is_written(images, tmp_path):
    pipeline.forecast(make_settings(images, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_image_set_that_is_not_made_yet_is_planned_from_its_source(tmp_path, monkeypatch):
    train, test = make_arrays()["train"], make_arrays()["test"]
    np.savez(tmp_path / "trees.npz", train_images=train[0], train_labels=train[1],
             test_images=test[0], test_labels=test[1])  # fmt: skip
    monkeypatch.setattr(ArraySource, "read", lambda *_: pytest.fail("read"))
    found = pipeline.forecast(make_settings(tmp_path / "trees.npz", tmp_path / "run"))
    assert not found["ingested"]
    assert [part["name"] for part in found["passes"]] == [
        "ingest", "prototypes from 'train'", "distances of 'test'",
    ]  # fmt: skip
    assert found["passes"][0]["bytes"] == 320 * 20
    assert not (tmp_path / "data").exists()


def test_medians_of_16_bits_read_the_images_twice(tmp_path):
    images = make_images(tmp_path / "images.zarr", make_arrays(dtype=np.uint16))
    settings = make_settings(images, tmp_path / "run", prototypes="median")
    fit = pipeline.forecast(settings)["passes"][0]
    assert (fit["reads"], fit["tasks"], fit["bytes"]) == (2, 8, 2 * 230 * 40)


def test_what_cannot_fit_is_refused_with_numbers_and_cure(images, tmp_path):
    settings = make_settings(
        images, tmp_path / "run", cluster={"kind": "threads", "workers": 2, "memory": "100 MB"}
    )
    with pytest.raises(MemoryLimitError, match=r"needs 0\.\d+ GB .*at most 0.1 GB.*more memory"):
        pipeline.forecast(settings)
    with pytest.raises(MemoryLimitError):
        pipeline.run_job(settings)
    assert not (tmp_path / "run").exists()


def test_pixels_are_tiled_where_memory_asks_for_it_and_the_result_is_the_same(tmp_path):
    arrays = make_arrays(train=60, test=20, shape=(60, 50))
    images = make_images(tmp_path / "images.zarr", arrays, shard=16)
    # room for the sums of whole images, not for 256 counts of each pixel
    memory = int((memory_model._BASE_NUMPY + 6 * 10**6) / memory_model._SHARE)
    for kind in ("mean", "median"):
        whole = pipeline.run_job(make_settings(images, tmp_path / kind, prototypes=kind))
        settings = make_settings(
            images, tmp_path / f"{kind} in tiles", prototypes=kind,
            cluster={"kind": "threads", "workers": 1, "memory": memory},
        )  # fmt: skip
        found = pipeline.forecast(settings)
        assert (found["tiles"] > 1) == (kind == "median")
        if kind == "median":
            assert f"to fit {memory / 1e9:.3g} GB" in found["tiling"]
            assert found["passes"][0]["tasks"] == 4 * found["tiles"]
        tiled = pipeline.run_job(settings)
        assert tiled.manifest["digests"] == whole.manifest["digests"]


KEPT = ".work/sums (until the prototypes are made)"


@pytest.mark.parametrize(("kind", "dtype", "room"), [
    ("mean", np.uint8, None), ("median", np.uint8, None), ("median", np.uint16, None),
    ("median", np.uint16, 6 * 10**6),
], ids=["mean", "median", "16 bits", "tiles"])  # fmt: skip
def test_sums_that_are_kept_are_as_many_as_was_planned(tmp_path, monkeypatch, kind, dtype, room):
    arrays = make_arrays(train=60, test=20, shape=(60, 50), dtype=dtype)
    images = make_images(tmp_path / "images.zarr", arrays, shard=8)
    memory = room and int((memory_model._BASE_NUMPY + room) / memory_model._SHARE)
    settings = make_settings(
        images, tmp_path / "run", prototypes=kind,
        cluster={"kind": "threads", "workers": 1, "memory": memory},
    )  # fmt: skip
    (planned,) = (file for file in pipeline.forecast(settings)["files"] if file["path"] == KEPT)
    found = []

    def look(*_):
        files = list((tmp_path / "run" / ".work" / "sums").rglob("*.npz"))
        found.append((len(files), sum(path.stat().st_size for path in files)))

    for name in ("first_bytes", "select_bytes", "label_sums"):
        function = getattr(fit_pass, name)
        monkeypatch.setattr(fit_pass, name, lambda *a, f=function: (look(), f(*a))[1])
    pipeline.run_job(settings)
    assert max(number for number, _ in found) <= planned["files"]
    assert 0.9 * planned["bytes"] <= max(size for _, size in found)
    assert max(size for _, size in found) <= planned["bytes"] + 500 * planned["files"]
