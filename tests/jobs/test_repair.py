"""What is damaged is named and made again, and ends with the digest that it had."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from image_files_for_tests import make_folder
from PIL import Image

import pipeline
from pipeline.core.errors import (
    ConflictError,
    DamagedError,
    IncompleteError,
    SourceError,
    StoreError,
)
from pipeline.sources.arrays import from_arrays

SHARD = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with pictures, their store and a run on it, and a copy of all."""
    root = tmp_path_factory.mktemp("made") / "all"
    folder = make_folder(root / "pictures", bad=(4, 11))
    copy = folder / "train/class0/000.png"
    shutil.copyfile(copy, folder / "train/class1/900.png")
    more = make_folder(root / "more", 13, seed=1)
    store = pipeline.ingest(str(folder), root / "images.zarr", SHARD, max_bad=2)
    pipeline.ingest(str(more), store, SHARD, append=True)
    settings = {"name": "job", "images": str(store), "output": str(root / "run")}
    pipeline.run_job(pipeline.make_job(settings))
    return root, shutil.copytree(root, root.with_name("copy"))


@pytest.fixture
def images(made):
    """A store with bad samples left out, duplicates, and samples appended; each time as new."""
    root, copy = made
    shutil.rmtree(root)
    shutil.copytree(copy, root)  # to the paths that the store and the run know
    return root / "images.zarr"


@pytest.fixture
def done(images):
    return images.with_name("run")


def all_files(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def contents(path):
    return {name: (path / name).read_bytes() for name in all_files(path)}


def flip(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[min(int(len(content) * place), len(content) - 1)] ^= 4
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def append_garbage(file):
    file.write_bytes(file.read_bytes() + b"\0\0\0\0")


def delete(file):
    file.unlink()


def replace(file):
    file.write_bytes(b"something else")


DAMAGES = [flip, truncate, append_garbage, delete, replace]


def test_what_is_whole_is_found_whole(images, done):
    assert pipeline.verify(images) == []
    assert pipeline.verify(done, repair=True) == []


def damaged_in_turn(names, kinds=DAMAGES):
    """Yield every file with one kind of damage, each kind in turn."""
    for number, name in enumerate(names):
        yield name, kinds[number % len(kinds)]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_damage_to_any_file_of_an_image_set_is_named_and_mended(images, step):
    before = contents(images)
    digest = pipeline.digest(images)
    for name, damage in damaged_in_turn(all_files(images)[::step]):
        damage(images / name)
        assert [found.file for found in pipeline.verify(images)] == [name]
        assert name in [found.file for found in pipeline.verify(images, repair=True)]
        assert contents(images) == before
    assert pipeline.digest(images) == digest


@pytest.mark.parametrize("step", [7, pytest.param(2, marks=pytest.mark.slow)])
def test_damage_to_many_files_of_a_run_is_named_and_mended(done, step):
    """Some of them: `make faults` damages them all."""
    before, digest = contents(done), pipeline.digest(done)
    for name, damage in damaged_in_turn(all_files(done)[::step]):
        damage(done / name)
        assert [found.file for found in pipeline.verify(done)] == [name]
        assert name in [found.file for found in pipeline.verify(done, repair=True)]
        assert contents(done) == before
    assert pipeline.digest(done) == digest


@pytest.mark.parametrize("damage", DAMAGES[::2])
def test_damage_to_several_files_at_once_is_mended(images, done, damage):
    for path in (images, done):
        before = contents(path)
        chosen = [name for name in all_files(path) if "manifest" not in name][::7]
        for name in chosen:
            damage(path / name)
        assert [found.file for found in pipeline.verify(path)] == chosen
        pipeline.verify(path, repair=True)
        assert contents(path) == before


def swap(path, one, other):
    first, second = (path / one).read_bytes(), (path / other).read_bytes()
    (path / one).write_bytes(second)
    (path / other).write_bytes(first)


@pytest.mark.parametrize(("one", "other"), [
    ("train/image/zarr.json", "train/image/c/1/0/0"),
    ("train/label/zarr.json", "train/label/c/0"),
    ("test/image/zarr.json", "train/image/c/0/0/0"),
    ("test/zarr.json", "test/image/c/0/0/0"),
    ("train/y/zarr.json", "train/y/c/0"),
    ("train/image/zarr.json", "train/label/zarr.json"),
])  # fmt: skip
def test_metadata_that_changed_places_is_named_with_what_took_its_place(images, one, other):
    before = contents(images)
    swap(images, one, other)
    assert [found.file for found in pipeline.verify(images)] == sorted([one, other])
    assert {found.file for found in pipeline.verify(images, repair=True)} == {one, other}
    assert contents(images) == before


@pytest.mark.parametrize(("one", "other"), [
    ("prototypes.zarr/std/zarr.json", "prototypes.zarr/std/c/0/0/0"),
    ("distances.zarr/distance/zarr.json", "distances.zarr/distance/c/0/0/0"),
    ("distances.zarr/label/zarr.json", "predictions/part-000001.parquet"),
    ("distances.zarr/zarr.json", "distances.zarr/metric/c/0"),
])  # fmt: skip
def test_so_it_is_in_a_run(done, one, other):
    before = contents(done)
    swap(done, one, other)
    assert [found.file for found in pipeline.verify(done)] == sorted([one, other])
    assert {one, other} <= {found.file for found in pipeline.verify(done, repair=True)}
    assert contents(done) == before


def test_a_table_that_is_none_of_the_run_is_named_and_removed(done):
    before = contents(done)
    shutil.copy(done / "predictions/part-000000.parquet", done / "predictions/part-000099.parquet")
    assert [found.file for found in pipeline.verify(done)] == ["predictions/part-000099.parquet"]
    pipeline.verify(done, repair=True)
    assert contents(done) == before


def test_what_cannot_be_made_again_says_why_and_is_left_as_it_is(images, done, tmp_path):
    shard = images / "train/image/c/0/0/0"
    delete(shard)
    pictures = images.with_name("pictures")
    shutil.move(pictures, tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="pictures"):
        pipeline.verify(images, repair=True)
    shutil.move(tmp_path / "elsewhere", pictures)
    other = pictures / "train/class0/003.png"
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(other)
    with pytest.raises(SourceError, match="another image in its source now"):
        pipeline.verify(images, repair=True)
    assert not shard.exists()
    delete(done / "predictions/part-000000.parquet")
    pipeline.ingest(str(make_folder(tmp_path / "yet more", 8, seed=2)), images, SHARD, append=True)
    with pytest.raises(ConflictError, match="was made from an image set with digest"):
        pipeline.verify(done, repair=True)


def test_what_was_made_from_memory_cannot_be_opened_again(tmp_path):
    arrays = {"train": (np.zeros((9, 3, 2), np.uint8), np.zeros(9, np.int32))}
    store = pipeline.ingest(from_arrays(arrays, ["only"]), tmp_path / "images.zarr", 4)
    truncate(store / "train/image/c/1/0/0")
    with pytest.raises(SourceError, match="arrays in memory"):
        pipeline.verify(store, repair=True)
    assert [found.partition for found in pipeline.verify(store)] == [1]


def test_what_was_never_finished_is_not_verified(images, done, tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        pipeline.verify(tmp_path / "nothing")
    (images / ".append").mkdir()
    with pytest.raises(IncompleteError, match="samples were being added"):
        pipeline.verify(images)
    for name in ("manifest.json", ".manifest.json"):
        (done / name).write_text("{}")
    with pytest.raises(DamagedError):
        pipeline.verify(done)
