"""What a store or a run is in plain values, and whether it still is what was recorded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.core.errors import DamagedError, IncompleteError, StoreError
from pipeline.report.description import describe, digest, folder_bytes, kind_or_refuse
from pipeline.sources.arrays import from_arrays
from pipeline.storage import manifest, run_files

NAMES = ["cat", "dog", "emu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store and a run made from it; to be read only."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": 40, "test": 20}.items():
        labels = np.arange(count) % 3
        arrays[split] = rng.integers(0, 256, (count, 5, 4, 3), np.uint8), labels
    arrays["train"][1][[0, 1]] = -1
    images = pipeline.ingest(from_arrays(arrays, NAMES), folder / "images", shard_samples=16)
    settings = pipeline.make_job(
        {"name": "study", "images": str(images), "output": str(folder / "run"), "device": "cpu"}
    )
    run = pipeline.run_job(settings)
    return images, run.path, arrays


@pytest.fixture
def images(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "images")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "run")


def test_the_bytes_of_a_folder_are_those_of_its_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(bytes(100))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(23))
    assert folder_bytes(tmp_path) == 123
    assert folder_bytes(tmp_path / "a") == 23


def test_a_store_is_described_by_what_it_was_made_from(made):
    path, _, arrays = made
    found = describe(path)
    assert (found["kind"], found["path"]) == (manifest.IMAGES, str(path))
    assert (found["class_names"], found["full_scale"]) == (NAMES, 255)
    assert found["provenance"]["kind"] == "arrays"
    assert list(found["splits"]) == ["train", "test"]
    for name, (pixels, labels) in arrays.items():
        split = found["splits"][name]
        assert split["count"] == len(pixels)
        assert (split["shape"], split["dtype"]) == ([5, 4, 3], "uint8")
        assert split["bytes"] == pixels.nbytes
        assert split["shard"] == 16
        assert split["partitions"] == -(-len(pixels) // 16)
        assert split["stored_bytes"] == folder_bytes(path / name)
        expected = {NAMES[code]: int((labels == code).sum()) for code in range(3)}
        assert split["classes"] == expected
        assert split["unlabelled"] == int((labels < 0).sum())


def test_a_run_is_described_by_what_was_asked(made):
    images, path, arrays = made
    found = describe(str(path))
    assert (found["kind"], found["name"]) == (manifest.RUN, "study")
    assert found["images"] == str(images)
    assert (found["fit"], list(found["evaluate"])) == ("train", ["test"])
    assert found["classes"] == NAMES
    assert set(found["metrics"]) == {"l1", "l2"}
    assert found["rows"] == 2 * len(arrays["test"][0])
    assert set(found["digests"]) == {"prototypes", "distances", "predictions", "run"}
    assert found["stored_bytes"] == folder_bytes(path)


def test_a_description_is_plain_values(made):
    for path in made[:2]:
        assert json.loads(json.dumps(describe(path))) == describe(path)


def test_the_digests_are_those_of_the_manifest(made):
    images, run, _ = made
    assert digest(images) == {"images": describe(images)["digest"]}
    assert digest(run) == describe(run)["digests"]


# changed after it was written -----------------------------------------------------------------


def test_a_changed_image_is_found_by_its_checksum(images):
    file = images / "test" / "image" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedError):
        digest(images)


@pytest.mark.parametrize("name", ["image", "label"])
def test_images_that_were_written_over_are_found_by_the_digest(images, name):
    array = zarr.open_array(images, path=f"train/{name}", mode="r+")
    array[0] = 1 - array[0]
    recorded = describe(images)["digest"]
    with pytest.raises(DamagedError, match="changed after they were written") as caught:
        digest(images)
    assert recorded in str(caught.value)


def test_distances_that_were_written_over_are_found_by_the_digest(run):
    array = zarr.open_array(run / run_files.DISTANCES, path="distance", mode="r+")
    array[0, 0, 0] = 0.5
    with pytest.raises(DamagedError, match="distances have digest"):
        digest(run)


def test_prototypes_that_were_written_over_are_found_by_the_digest(run):
    array = zarr.open_array(run / run_files.PROTOTYPES, path="numerator", mode="r+")
    array[0, 0, 0] += 1
    with pytest.raises(DamagedError, match="prototypes have digest"):
        digest(run)


def test_a_missing_table_of_predictions_is_found(run):
    next((run / "predictions").glob("*.parquet")).unlink()
    with pytest.raises(DamagedError):
        digest(run)


# neither store nor run -------------------------------------------------------------------------


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    for call in (describe, digest, kind_or_refuse):
        with pytest.raises(StoreError, match="no such folder"):
            call(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(IncompleteError, match=r"holds no manifest\.json"):
        describe(tmp_path / "thesis")


@pytest.mark.parametrize("kind", ["images", "run"])
def test_what_lost_its_manifest_is_incomplete_and_called_what_it_is(request, kind):
    path = request.getfixturevalue(kind)
    (path / manifest.MANIFEST).unlink()
    name = {"images": manifest.IMAGES, "run": manifest.RUN}[kind]
    for call in (describe, digest):
        with pytest.raises(IncompleteError, match=f"a finished {name}"):
            call(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "something else"}'])
def test_a_manifest_that_cannot_be_read_is_damage(images, content):
    (images / manifest.MANIFEST).write_text(content)
    for call in (describe, digest):
        with pytest.raises(DamagedError, match=r"manifest\.json"):
            call(images)
